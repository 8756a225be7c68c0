"""Formats of what `run` writes and `report` reads."""

__all__ = ['POINT_FORMAT', 'QUALITY_FORMAT']

# Of point.json and quality.json.
POINT_FORMAT = 'foundry_upcycle/serving_point/2'
QUALITY_FORMAT = 'foundry_upcycle/serving_quality/1'
