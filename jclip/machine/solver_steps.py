"""A solver in a measured run: how many iterations it still has, guessed from the way of its first ones. No Jittor."""

from __future__ import annotations

import numpy as np

from jclip.machine import work_meter

FIRST = 8  # steps, before the way is judged


class SolverSteps:
    """Cuts a solver short. most: steps that it may take; goal: where its distance has to come."""

    def __init__(self, most: int, goal: float):
        self._meter, self._most, self._goal = work_meter.running(), most, max(goal, 1e-300)
        self._window = self._meter.window(0.15) if self._meter else None
        self._distances: list[float] = []

    def ends(self, distance: float) -> bool:
        """Whether enough is measured, at that distance to the goal; what is left counts, in steps that the way so far says."""
        if self._window is None:
            return False
        self._distances.append(max(float(distance), 1e-300))
        if not self._window.done() or len(self._distances) <= FIRST:
            return False
        left = min(self.steps_left(), self._most - len(self._distances))
        self._window.warm()
        self._meter.skip(self._window.rate() * left)
        self._meter.count("iterations", len(self._distances), len(self._distances) + left)
        if "iterations" not in self._meter.uncertain:
            self._meter.uncertain.append("iterations")
        return True

    def steps_left(self) -> float:
        """Steps to the goal at the pace of the later half, in logarithms of the distance; all that are allowed at no pace."""
        half = np.log(self._distances[len(self._distances) // 2 :])
        slope = np.polyfit(np.arange(len(half)), half, 1)[0] if len(half) > 1 else 0.0
        away = half[-1] - np.log(self._goal)
        return 0.0 if away <= 0 else away / -slope if slope < 0 else float(self._most)
