#!/usr/bin/env python3
"""Adds up what check.sh ran: steps.tsv (one line a step) and JUnit files of the suites. Prints every skip and failure with its
reason, then the closing line; exits 1 when something failed or nothing ran."""
import pathlib
import re
import sys
import xml.etree.ElementTree as ET


def skip_reasons(path):
    """{case: reason} from a suite's log: TAP carries the reason, meson's JUnit file does not."""
    if not path.exists():
        return {}
    return dict(re.findall(r"^ok -? ?(\S+::\S+).*# SKIP (.*)$", path.read_text(errors="replace"), re.M))


def junit_cases(path):
    """(name, outcome, reason) of every case in a JUnit file."""
    reasons = skip_reasons(path.with_name(path.name.split(".")[0] + ".testlog.txt"))
    for suite in ET.parse(path).getroot().iter("testsuite"):
        for case in suite.iter("testcase"):
            name = f"{path.name.split('.')[0]}/{suite.get('name', '')}/{case.get('name', '')}"
            bad = case.find("failure") if case.find("failure") is not None else case.find("error")
            skipped = case.find("skipped")
            if bad is not None:
                yield name, "fail", bad.get("message") or (bad.text or "").strip()[:200]
            elif skipped is not None:
                case_name = case.get("name", "").split(" - ")[-1].strip()
                yield name, "skip", reasons.get(case_name) or skipped.get("message") or "no reason given"
            else:
                yield name, "pass", ""


def main():
    results = pathlib.Path(sys.argv[1])
    cases = []
    steps = results / "steps.tsv"
    if steps.exists():
        for line in steps.read_text().splitlines():
            name, outcome, reason = (line.split("\t") + ["", ""])[:3]
            cases.append((f"step/{name}", outcome, reason))
    for path in sorted(results.glob("*.junit.xml")):
        cases.extend(junit_cases(path))
    count = {"pass": 0, "fail": 0, "skip": 0}
    for name, outcome, reason in cases:
        count[outcome] += 1
        if outcome != "pass":
            print(f"{outcome:5} {name}{': ' + reason if reason else ''}")
    print(f"{count['pass']} passed, {count['fail']} failed, {count['skip']} skipped")
    return 1 if count["fail"] or not count["pass"] else 0


if __name__ == "__main__":
    sys.exit(main())
