"""From a built data set to batches: who trains, in what order, how altered."""
