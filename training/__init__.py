"""From a published data set to a served model."""
