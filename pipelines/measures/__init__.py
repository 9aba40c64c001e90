"""The measures of `beam-influence evaluate`: how good the scores of finished runs are."""
