"""Everything that is not a provider: the contract, its models and errors, and what all providers share."""
