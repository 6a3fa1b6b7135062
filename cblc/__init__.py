__version__ = "0.1.0"

import os as _os
_os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reports its use from its first import on; not from here
