"""Entry point of the worker: `python submit_prediction.py --once`. The same program as the `forecastd` command."""

from cli.main import run

if __name__ == "__main__":
    run()
