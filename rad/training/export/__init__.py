"""What a checkpoint of training tells its reader: the model card."""
