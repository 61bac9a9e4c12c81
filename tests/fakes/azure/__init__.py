"""A stateful fake of Azure's Resource Manager, with machines that answer SSH. Reading order: cloud, machines, facts, server."""
