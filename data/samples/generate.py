#!/usr/bin/env python3
"""Writes train.jsonl and eval.jsonl: spoken requests to a home assistant and the strict JSON
command each one means. Standard library only; the same seed gives the same bytes.

    python3 data/samples/generate.py            # writes beside this file
    python3 data/samples/generate.py --check    # fails when the files differ from what it would write
"""
import argparse
import json
import pathlib
import random
import sys

SEED = 20240607
NUM_TRAIN, NUM_EVAL = 480, 100

ROOMS = ["kitchen", "bedroom", "bathroom", "hallway", "garage", "office", "living room", "attic",
         "basement", "nursery", "porch", "guest room"]
PEOPLE = ["Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Oscar",
          "Mom", "Dad"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "tomorrow"]
ARTISTS = ["Miles Davis", "Adele", "Queen", "The Beatles", "Nina Simone", "Coldplay", "Bach",
           "Daft Punk", "Norah Jones", "Radiohead", "ABBA", "Bob Dylan", "Mozart", "Elton John"]
TASKS = ["water the plants", "call the bank", "pay the rent", "feed the cat", "book a hotel",
         "return the library books", "wash the car", "renew my passport", "pick up the laundry",
         "send the invoice", "clean the oven", "charge the camera", "order new glasses",
         "take out the trash"]
EVENTS = ["dentist appointment", "team meeting", "piano lesson", "yoga class", "job interview",
          "birthday party", "book club", "dinner with Anna", "car inspection", "parents evening",
          "swimming lesson", "lunch with Ben", "haircut", "budget review"]
ITEMS = ["oat milk", "eggs", "bananas", "rice", "olive oil", "coffee beans", "tomatoes", "soap",
         "batteries", "bread", "apples", "paper towels", "yogurt", "onions", "pasta"]
MESSAGES = ["I am running late", "dinner is ready", "the train is delayed", "see you at the station",
            "I found the keys", "please call me back", "the package arrived", "I am at the airport",
            "bring an umbrella", "the meeting is cancelled", "happy birthday", "thanks for the help"]
HOURS = [f"{h}:{m:02d}" for h in range(6, 23) for m in (0, 5, 10, 15, 20, 30, 40, 45, 50)]

# action -> (slots in the order of the answer, phrasings)
INTENTS = {
    "set_light": (
        {"room": ROOMS, "state": ["on", "off"]},
        ["Turn {state} the light in the {room}.", "Switch the {room} light {state}.",
         "Turn the lights {state} in the {room}.", "I want the {room} light {state}.",
         "{room} lights {state}", "Could you switch {state} the {room} lights?",
         "The light in the {room} should be {state}.", "Lights {state} in the {room}, please."]),
    "dim_light": (
        {"room": ROOMS, "percent": list(range(5, 100, 5))},
        ["Dim the {room} light to {percent} percent.", "Set the {room} lights to {percent} percent.",
         "Make the light in the {room} {percent} percent bright.",
         "I would like {percent} percent brightness in the {room}.",
         "Brightness of the {room} lamp to {percent} percent.",
         "Lower the lights in the {room} to {percent} percent."]),
    "set_heating": (
        {"room": ROOMS, "degrees": list(range(15, 27))},
        ["Set the {room} to {degrees} degrees.", "Heat the {room} to {degrees} degrees.",
         "I want it to be {degrees} degrees in the {room}.",
         "Make the {room} {degrees} degrees warm.", "It should be {degrees} degrees in the {room}.",
         "Change the heating in the {room} to {degrees} degrees."]),
    "play_music": (
        {"artist": ARTISTS, "room": ROOMS},
        ["Play {artist} in the {room}.", "Put on some {artist} in the {room}.",
         "I want to hear {artist} in the {room}.", "Start music by {artist} in the {room}.",
         "In the {room}, play songs by {artist}.", "Let us listen to {artist} in the {room}."]),
    "add_event": (
        {"title": EVENTS, "day": DAYS, "time": HOURS},
        ["Add {title} on {day} at {time} to my calendar.", "Put {title} in my calendar, {day} at {time}.",
         "Schedule {title} for {day} at {time}.", "I have {title} on {day} at {time}.",
         "New event: {title}, {day}, {time}.", "Note in my calendar that {title} is {day} at {time}."]),
    "add_reminder": (
        {"task": TASKS, "day": DAYS},
        ["Remind me to {task} on {day}.", "On {day} I need to {task}, remind me.",
         "Do not let me forget to {task} on {day}.", "Set a reminder for {day}: {task}.",
         "I must {task} on {day}, please remind me.", "Reminder to {task} on {day}."]),
    "add_shopping": (
        {"item": ITEMS, "count": list(range(2, 13))},
        ["Add {count} {item} to the shopping list.", "Put {count} {item} on my shopping list.",
         "We need {count} {item} from the store.", "Shopping list: {count} {item}.",
         "Please note that we have to buy {count} {item}.", "I want to buy {count} {item}."]),
    "send_message": (
        {"to": PEOPLE, "text": MESSAGES},
        ["Tell {to} that {text}.", "Send a message to {to}: {text}.", "Write to {to} that {text}.",
         "Text {to}: {text}.", "Let {to} know that {text}.", "Message {to} and say {text}."]),
}
PREFIXES = [""] * 8 + ["Please, ", "Hey, ", "OK, ", "Hello, ", "Quick, "]


def sentence(rng, phrasing, slots):
    text = phrasing.format(**slots)
    # "on tomorrow" is not English.
    text = text.replace("on tomorrow", "tomorrow").replace("On tomorrow", "Tomorrow")
    prefix = rng.choice(PREFIXES)
    if prefix:
        first = text.split(" ")[0]
        keep = first == "I" or any(text.startswith(v) for v in DAYS)
        return prefix + (text if keep else text[0].lower() + text[1:])
    return text[0].upper() + text[1:]


def record(rng, action, slots):
    prompt = sentence(rng, rng.choice(INTENTS[action][1]), slots)
    return {"prompt": prompt, "completion": json.dumps({"action": action, **slots})}


def generate():
    """Every combination of slot values belongs to one split only: eval never sees one of train's."""
    rng = random.Random(SEED)
    actions = list(INTENTS)
    train, evaluation, used = [], [], set()
    for split, count in ((evaluation, NUM_EVAL), (train, NUM_TRAIN)):
        while len(split) < count:
            action = actions[len(split) % len(actions)]
            slots = {name: rng.choice(values) for name, values in INTENTS[action][0].items()}
            # set_light has 24 combinations only: its eval rows are three rooms x state.
            if action == "set_light":
                held_out = (slots["room"], slots["state"]) in HELD_OUT_LIGHTS
                if held_out != (split is evaluation):
                    continue
                key = None
            else:
                key = (action, *slots.values())
                if key in used:
                    continue
            row = record(rng, action, slots)
            if row["prompt"] in used:
                continue
            used.add(row["prompt"])
            used.add(key)
            split.append(row)
    rng.shuffle(train)
    rng.shuffle(evaluation)
    return train, evaluation


HELD_OUT_LIGHTS = {("kitchen", "on"), ("office", "off"), ("guest room", "on"), ("attic", "off"),
                   ("porch", "on"), ("garage", "off")}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    folder = pathlib.Path(__file__).resolve().parent
    train, evaluation = generate()
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in evaluation}
    for name, rows in (("train.jsonl", train), ("eval.jsonl", evaluation)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if arguments.check:
            if (folder / name).read_text() != text:
                sys.exit(f"{name} is not what generate.py writes")
        else:
            (folder / name).write_text(text)


if __name__ == "__main__":
    main()
