"""The contract, one test a sentence. Reading order: subject, driving, offers, create, read, terminate, refusals."""
