"""Course enrollment: a capacity, a limit for each student, and no student twice, decided together.

No aggregate could hold these rules: one is about the course, one about the student, one about both. The decision names
the events of all three, and the append is refused if any of them changed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from examples.support import place, run
from orisun import CommandExecutor, Decision, NewEvent, Projector, RetryPolicy, where

COURSES, CAPACITY, PER_STUDENT, STUDENTS = 4, 5, 2, 20


class Refused(Exception):
    """A rule of enrollment says no."""


@dataclass(frozen=True)
class Enroll:
    """A student wants a place in a course."""

    student: str
    course: str


def capacity(course: str) -> Projector[int]:
    return Projector("capacity", where("CourseOffered", course=course), 0, lambda _, event: int(event.data["capacity"]))


def counted(name: str, **keys: str) -> Projector[int]:
    return Projector(name, where("StudentEnrolled", **keys), 0, lambda count, _: count + 1)


def enroll(command: Enroll, decision: Decision) -> list[NewEvent]:
    if decision["in course"] >= decision["capacity"]:
        raise Refused("full")
    if decision["of student"] >= PER_STUDENT:
        raise Refused("too many courses")
    if decision["both"]:
        raise Refused("enrolled already")
    return [NewEvent("StudentEnrolled", {"student": command.student, "course": command.course})]


async def main() -> None:
    async with place("school") as here:
        await here.index("by_course", "course")
        await here.index("by_student", "student")
        courses = [f"course-{number}" for number in range(COURSES)]
        await here.events.append([NewEvent("CourseOffered", {"course": one, "capacity": CAPACITY}) for one in courses])
        executor = CommandExecutor(here.events, retry=RetryPolicy(attempts=200, first=0.002, longest=0.05))
        executor.register(
            Enroll,
            lambda command: [
                capacity(command.course),
                counted("in course", course=command.course),
                counted("of student", student=command.student),
                counted("both", student=command.student, course=command.course),
            ],
            enroll,
        )
        refused: dict[str, int] = {}

        async def ask(student: str) -> None:
            # everybody wants every course, and asks twice for the first
            for course in (courses[0], *courses):
                try:
                    await executor.execute(Enroll(student, course))
                except Refused as reason:
                    refused[str(reason)] = refused.get(str(reason), 0) + 1

        await asyncio.gather(*(ask(f"student-{number}") for number in range(STUDENTS)))
        enrolled = [event.data async for event in here.events.read(where("StudentEnrolled"))]
        for course in courses:
            taken = [one["student"] for one in enrolled if one["course"] == course]
            print(f"{course}: {len(taken)} of {CAPACITY} places taken")
            if len(taken) > CAPACITY or len(set(taken)) != len(taken):
                raise AssertionError("a course is too full, or has a student twice")
        most = max([one["student"] for one in enrolled].count(f"student-{number}") for number in range(STUDENTS))
        if most > PER_STUDENT:
            raise AssertionError("a student has too many courses")
        print(f"no student has more than {PER_STUDENT} courses; refused:", refused)


if __name__ == "__main__":
    run(main)
