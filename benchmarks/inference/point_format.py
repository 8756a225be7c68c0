"""The format of ``point.json``, which `run` writes and `report` reads."""

__all__ = ['POINT_FORMAT']

POINT_FORMAT = 'foundry_upcycle/serving_point/2'
