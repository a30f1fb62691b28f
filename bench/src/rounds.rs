//! How many rounds a trial has, and in which pass.

use crate::arguments::{REPEAT, RunArguments};
use crate::report::{Row, is_settled};
use crate::scenarios::{Scenario, Trial};
use crate::server::Program;
use crate::stats::{FIRST_LOOK, is_worth_a_look};
use std::time::Duration;

/// How often each trial has its turn on each server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounds {
    min: usize,
    max: usize,
    time_min: Duration,
    time_max: Duration,
    /// All trials have their turn so often, and a part of their rounds each time.
    pub passes: u32,
    /// Nothing comes after the pass that these are for.
    is_last: bool,
}

/// For so long a trial has rounds however well they agree: what the neighbours of a virtual machine do lasts seconds, and all rounds
/// may lie in one of these.
const TIME_MIN: Duration = Duration::from_secs(15);
/// Some of what they do lasts minutes, and then all rounds of a trial do lie in it: so a part of them comes when all other trials have had one.
const PASSES: u32 = 3;

impl Rounds {
    pub fn new(arguments: &RunArguments) -> Result<Self, String> {
        let max = arguments.repeat_max;
        let min = arguments.repeat.unwrap_or(REPEAT.min(max));
        if arguments.quick {
            return Ok(Self {
                min: 1,
                max: 1,
                time_min: Duration::ZERO,
                time_max: Duration::ZERO,
                passes: 1,
                is_last: true,
            });
        }
        let rounds = Self {
            min,
            max,
            time_min: TIME_MIN,
            time_max: Duration::from_secs_f64(arguments.time_max),
            passes: PASSES.min(u32::try_from(max).unwrap_or(PASSES)),
            is_last: true,
        };
        match min <= max {
            true => Ok(rounds),
            false => Err(format!(
                "--repeat {min} is more than --repeat-max {max} allows"
            )),
        }
    }

    /// What is to have been done when this pass ends, the first one being 1.
    pub fn until(self, pass: u32) -> Self {
        let part = |count: usize| {
            let passed = count.saturating_mul(pass as usize);
            passed.div_ceil(self.passes as usize)
        };
        Self {
            min: part(self.min),
            max: part(self.max),
            // Of each pass by itself.
            time_min: self.time_min / self.passes,
            time_max: self.time_max * pass / self.passes,
            is_last: pass == self.passes,
            ..self
        }
    }

    /// Whether a trial has had enough of them.
    pub fn are_enough(self, course: &Course, in_pass: Duration) -> bool {
        let Course { rows, rounds, .. } = course;
        let all_settled = || rows.iter().all(|rows| is_settled(rows));
        // Before the last pass what is settled by luck has more rounds all the same, and of too few to say anything the rest comes later.
        let settled = || match self.is_last {
            true => is_worth_a_look(*rounds) && all_settled(),
            false => *rounds < FIRST_LOOK || all_settled(),
        };
        // As long as its scenarios would have had one after the other.
        let time_max = self.time_max * rows.len() as u32;
        let ends =
            || course.failed || course.taken >= time_max || in_pass >= self.time_min && settled();
        *rounds >= self.max || *rounds >= self.min && ends()
    }
}

/// A trial, and what came of its rounds so far.
pub struct Course<'a> {
    pub trial: &'a Trial,
    /// They have their turns in it side by side.
    pub programs: &'a [Program],
    /// Of each of its scenarios, by program.
    pub rows: Vec<Vec<Row>>,
    pub rounds: usize,
    pub taken: Duration,
    /// A turn of this pass has.
    pub failed: bool,
}

impl<'a> Course<'a> {
    pub fn new(trial: &'a Trial, programs: &'a [Program]) -> Self {
        let rows_of = |scenario: &Scenario| -> Vec<Row> {
            let rows = programs.iter();
            rows.map(|program| Row::new(scenario, &program.name))
                .collect()
        };
        Self {
            trial,
            programs,
            rows: trial.scenarios.iter().map(rows_of).collect(),
            rounds: 0,
            taken: Duration::ZERO,
            failed: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::tests::run_arguments;
    use crate::scenarios;

    #[test]
    fn there_are_as_many_rounds_as_are_asked_for() {
        let of = |more: &[&str]| {
            let rounds = Rounds::new(&run_arguments(more).unwrap());
            rounds.map(|rounds| (rounds.min, rounds.max))
        };
        assert_eq!(of(&[]), Ok((12, 300)));
        assert_eq!(of(&["--repeat=3", "--repeat-max=3"]), Ok((3, 3)));
        assert_eq!(of(&["--repeat-max=3"]), Ok((3, 3)));
        assert_eq!(of(&["--quick"]), Ok((1, 1)));
        let error = of(&["--repeat=301"]).unwrap_err();
        assert!(error.contains("--repeat-max 300"), "{error}");
    }

    #[test]
    fn rounds_end_where_they_are_looked_at() {
        let row = |server, figures: &[f64]| {
            let mut row = Row::new(&scenarios::all()[0].scenarios[0], server);
            row.figures = figures.to_vec();
            row
        };
        // A round takes a second, and there are as many as are there.
        let in_pass = |is_last, min, max, failed, rows: &[Vec<Row>], time: [u64; 2]| {
            let [time_min, time_max] = time.map(Duration::from_secs);
            let enough = Rounds {
                min,
                max,
                time_min,
                time_max,
                passes: 1,
                is_last,
            };
            let trial = &scenarios::all()[0];
            let mut course = Course::new(trial, &[]);
            (course.rows, course.failed) = (rows.to_vec(), failed);
            (0..).find(|done| {
                (course.rounds, course.taken) = (*done, Duration::from_secs(*done as u64));
                enough.are_enough(&course, course.taken)
            })
        };
        let in_time =
            |min, max, failed, rows: &[Vec<Row>], time| in_pass(true, min, max, failed, rows, time);
        let ends = |min, max, failed, rows: &[Vec<Row>]| in_time(min, max, failed, rows, [0, 1000]);
        let settled = [vec![row("a", &[1.0; 25])]];
        assert_eq!(ends(6, 25, false, &settled), Some(6));
        assert_eq!(ends(7, 25, false, &settled), Some(8));
        assert_eq!(ends(3, 3, false, &settled), Some(3));
        let far: Vec<f64> = (1..26).map(f64::from).collect();
        let unsettled = [vec![row("a", &[1.0; 25]), row("b", &far)]];
        assert_eq!(ends(6, 25, false, &unsettled), Some(25));
        assert_eq!(ends(6, 25, true, &unsettled), Some(6));
        assert_eq!(in_time(6, 25, false, &settled, [12, 1000]), Some(15));
        assert_eq!(in_time(6, 25, false, &unsettled, [12, 20]), Some(20));
        assert_eq!(in_time(6, 25, false, &unsettled, [2, 3]), Some(6));
        // In a pass that is not the last.
        let first = |rows: &[Vec<Row>], time| in_pass(false, 2, 25, false, rows, time);
        assert_eq!(first(&settled, [4, 40]), Some(4));
        assert_eq!(first(&settled, [7, 40]), Some(7));
        assert_eq!(first(&unsettled, [4, 40]), Some(4));
        assert_eq!(first(&unsettled, [7, 20]), Some(20));
        // Of two scenarios one is not settled, and both have time.
        let [settled, unsettled] = [settled, unsettled].map(|[rows]| rows);
        let both = [settled, unsettled];
        assert_eq!(ends(6, 25, false, &both), Some(25));
        assert_eq!(in_time(6, 25, false, &both, [2, 7]), Some(14));
    }

    #[test]
    fn each_pass_has_a_part_of_the_rounds() {
        let parts = |more: &[&str]| {
            let rounds = Rounds::new(&run_arguments(more).unwrap()).unwrap();
            let passes = (1..=rounds.passes).map(|pass| rounds.until(pass));
            passes
                .map(|part| (part.min, part.max, part.time_max.as_secs()))
                .collect::<Vec<_>>()
        };
        let long = ["--repeat=7", "--repeat-max=10", "--time-max=60"];
        assert_eq!(parts(&long), [(3, 4, 20), (5, 7, 40), (7, 10, 60)]);
        let short = ["--repeat=1", "--repeat-max=2", "--time-max=60"];
        assert_eq!(parts(&short), [(1, 1, 30), (1, 2, 60)]);
        assert_eq!(parts(&["--quick"]), [(1, 1, 0)]);
    }
}
