"""Commands that train: `python -m train.{clip,prior,decoder,upsampler} RECIPE`."""
