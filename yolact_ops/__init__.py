"""Operations around the library: settings of the steps, sources of data, tracking, registry, reports, commands.

No import here or in lineage/__init__.py: the image build runs `yolact_ops.lineage.code` with plain Python.
"""
