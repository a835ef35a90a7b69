"""Laws of continual pre-training: forms, one fitter, intervals, hold-outs and what they answer."""
