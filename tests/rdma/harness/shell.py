"""Two guests and a prompt, to try things out: "a COMMAND" runs it in guest a."""
from harness.machine import Failed


def shell(runner):
    runner.prepare()
    net = runner.net(2)
    try:
        net.begin("shell")
        print("two guests run; a COMMAND or b COMMAND; & at the end: in the background; end of file: both off")
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                return
            name, _, command = line.partition(" ")
            guest = {guest.name: guest for guest in net.guests}.get(name)
            if guest is None or not command:
                continue
            try:
                done = guest.run(command, timeout=600, check=False)
                print(f"{done.out}{done.err}[{done.rc}, {done.seconds:.2f} s]", flush=True)
            except Failed as failed:
                print(failed, flush=True)
            for trouble in net.trouble():
                print(trouble, flush=True)
    finally:
        net.close()
