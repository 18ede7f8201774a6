"""splat_fit: image shards -> splat shards (.gs2d)."""
