"""Stage `train_teacher`: import a pretrained CLIP, or train a small one on the image shards."""
