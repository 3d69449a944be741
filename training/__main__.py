"""accelerate launch -m otel_lightning.training --config X.yaml: train.py where there is no checkout."""

import sys

from otel_lightning.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
