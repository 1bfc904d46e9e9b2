"""Indexes of boundaries: the catalog of them, and which are READY."""

from .index_sql import IndexCondition, IndexDefinition, IndexField, ValueType

__all__ = ["IndexCondition", "IndexDefinition", "IndexField", "ValueType"]
