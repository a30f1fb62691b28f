//! Turns on several servers side by side, of which one at a time does anything.
//!
//! What a neighbour on the machine takes comes and goes, often within a second. Slices that follow each other meet about the same of it, and
//! their ratio shows little of it; whole turns, one after the other, do not.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Who holds it runs; the others wait.
pub struct Relay {
    state: Mutex<State>,
    passed: Condvar,
}

struct State {
    holder: usize,
    /// Those who have not left, by number.
    running: Vec<bool>,
}

impl State {
    /// The next one who has not left, himself if there is no other.
    fn pass(&mut self) {
        let count = self.running.len();
        let behind = (1..=count).map(|step| (self.holder + step) % count);
        if let Some(next) = behind.into_iter().find(|next| self.running[*next]) {
            self.holder = next;
        }
    }
}

impl Relay {
    /// For so many runners, the first of whom holds it.
    pub fn runners(count: usize) -> Vec<Runner> {
        let relay = Arc::new(Self {
            state: Mutex::new(State {
                holder: 0,
                running: vec![true; count],
            }),
            passed: Condvar::new(),
        });
        let runner = |number| Runner {
            relay: relay.clone(),
            number,
        };
        (0..count).map(runner).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is held")
    }
}

/// One who runs when it is his time; leaves when he is dropped.
pub struct Runner {
    relay: Arc<Relay>,
    number: usize,
}

impl Runner {
    /// Until it is his time.
    pub fn wait(&self) {
        let state = self.relay.state();
        let is_other = |state: &mut State| state.holder != self.number;
        let waited = self.relay.passed.wait_while(state, is_other);
        drop(waited.expect("nothing panics while it is held"));
    }

    /// Lets the others run until it is his time again: at once, where there are none.
    pub fn pass(&self) {
        self.relay.state().pass();
        self.relay.passed.notify_all();
        self.wait();
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let mut state = self.relay.state();
        state.running[self.number] = false;
        if state.holder == self.number {
            state.pass();
        }
        drop(state);
        self.relay.passed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What runners did, each of whom passes so often before he leaves.
    fn run(passes: &[usize]) -> Vec<usize> {
        let done = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for (runner, passes) in Relay::runners(passes.len()).into_iter().zip(passes) {
                let done = &done;
                scope.spawn(move || {
                    runner.wait();
                    for _ in 0..*passes {
                        done.lock().unwrap().push(runner.number);
                        runner.pass();
                    }
                    done.lock().unwrap().push(runner.number);
                });
            }
        });
        done.into_inner().unwrap()
    }

    #[test]
    fn they_run_in_order_until_they_leave() {
        assert_eq!(run(&[0, 0, 0]), [0, 1, 2]);
        assert_eq!(run(&[2, 2]), [0, 1, 0, 1, 0, 1]);
        assert_eq!(run(&[0, 3, 1]), [0, 1, 2, 1, 2, 1, 1]);
        assert_eq!(run(&[3]), [0, 0, 0, 0]);
    }

    #[test]
    fn who_leaves_before_his_time_is_passed_over() {
        let mut runners = Relay::runners(3);
        drop(runners.remove(1));
        std::thread::scope(|scope| {
            let last = runners.pop().unwrap();
            scope.spawn(move || last.wait());
            runners[0].pass();
        });
    }
}
