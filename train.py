"""accelerate launch train.py --config configs/X.yaml [--set key=value] [--dry-run]"""

import sys

from otel_lightning.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
