"""Load tests: Locust users that send realistic comments over gRPC, and verdicts on what they measured."""
