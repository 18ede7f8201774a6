"""Stage `download`: photographs with captions or classes -> image shards."""
