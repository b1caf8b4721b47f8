"""YAML files to typed stages to results."""
