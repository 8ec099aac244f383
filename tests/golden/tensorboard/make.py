"""Writes events.tfevents with tensorboard 2.21.0: a file as its own writer frames it, with the
version, a restart and two steps of scalars at fixed times.

    python make.py
"""
import pathlib

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

HERE = pathlib.Path(__file__).resolve().parent


def scalars(time, step, values):
    summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=value)
                                         for tag, value in values])
    return event_pb2.Event(wall_time=time, step=step, summary=summary)


def main():
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    events = [event_pb2.Event(wall_time=1764324000.25, file_version="brain.Event:2"),
              event_pb2.Event(wall_time=1764324000.5, step=301, session_log=start),
              scalars(1764324001.0, 301, [("train/loss", 2.5), ("train/learning_rate", 2e-4)]),
              scalars(1764324002.0, 123456789012, [("train/loss", float("inf")),
                                                   ("eval/" + "long" * 40, -0.0)])]
    with open(HERE / "events.tfevents", "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()


if __name__ == "__main__":
    main()
