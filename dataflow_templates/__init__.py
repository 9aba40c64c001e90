"""The Flex Template of Google Cloud Dataflow: see docs/dataflow.md."""
