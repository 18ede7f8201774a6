"""SplatCLIP's stages and what flows between them.

The flow is the layout: photographs -> splats -> tokens -> embeddings -> scores.

    download         photographs with captions           -> image shards
    train_teacher    image shards                        -> a CLIP model (imported, or trained small)
    splat_fit        image shards                        -> splat shards (.gs2d)
    train_adapter    image and splat shards, the teacher -> a stem that lets the frozen teacher read splats
    zero_shot_eval   all of them                         -> scores.json, a table, a contact sheet

Stages are folders; the nouns between them are modules. Nouns never import stages, a stage never imports another.
"""
