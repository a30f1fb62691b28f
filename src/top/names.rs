//! Names of hosts, looked up beside the screen so that a slow resolver does not hold it up.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

/// A resolver that does not answer keeps a thread for seconds.
const THREADS: usize = 4;

/// What is known; none is an address without a name.
#[derive(Clone, Debug, Default)]
pub struct Names {
    known: HashMap<String, Option<String>>,
    wanted: Vec<String>,
}

impl Names {
    pub fn name_of(&self, ip: &str) -> Option<&str> {
        self.known.get(ip)?.as_deref()
    }

    /// Remembers to look this up, once.
    pub fn want(&mut self, ip: &str) {
        if !ip.is_empty() && !self.known.contains_key(ip) {
            self.known.insert(ip.to_owned(), None);
            self.wanted.push(ip.to_owned());
        }
    }

    pub fn take_wanted(&mut self) -> Vec<String> {
        std::mem::take(&mut self.wanted)
    }

    pub fn set(&mut self, ip: String, name: Option<String>) {
        self.known.insert(ip, name);
    }

    /// Looks up all that is wanted, and waits for it.
    pub fn resolve(&mut self) {
        let (found, names) = mpsc::channel();
        let resolver = Resolver::start(move |ip, name| found.send((ip, name)).is_ok());
        for ip in self.take_wanted() {
            resolver.look_up(ip);
        }
        drop(resolver);
        for (ip, name) in names {
            self.set(ip, name);
        }
    }
}

/// Threads that end when this is dropped and all that was asked for is answered.
#[derive(Debug)]
pub struct Resolver {
    questions: Sender<String>,
}

impl Resolver {
    /// `found` is told of each address; it says whether anybody still listens.
    pub fn start(found: impl Fn(String, Option<String>) -> bool + Clone + Send + 'static) -> Self {
        let (questions, asked) = mpsc::channel::<String>();
        let asked: Arc<Mutex<Receiver<String>>> = Arc::new(Mutex::new(asked));
        for _ in 0..THREADS {
            let (asked, found) = (asked.clone(), found.clone());
            std::thread::spawn(move || {
                loop {
                    let question = match asked.lock() {
                        Ok(asked) => asked.recv(),
                        Err(_) => return,
                    };
                    let Ok(ip) = question else { return };
                    let name = name_of_address(&ip);
                    if !found(ip, name) {
                        return;
                    }
                }
            });
        }
        Self { questions }
    }

    pub fn look_up(&self, ip: String) {
        // Without threads there are no names, and addresses are shown.
        let _ = self.questions.send(ip);
    }
}

/// None: no name, or what the resolver gives back is the address itself.
fn name_of_address(ip: &str) -> Option<String> {
    let name = dns_lookup::lookup_addr(&ip.parse::<IpAddr>().ok()?).ok()?;
    (name != ip).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_wanted_is_answered_once() {
        let mut names = Names::default();
        for ip in ["127.0.0.1", "127.0.0.1", "", "no address", "::1"] {
            names.want(ip);
        }
        assert_eq!(names.wanted.len(), 3);
        names.resolve();
        names.want("127.0.0.1");
        assert!(names.take_wanted().is_empty());
        assert_eq!(names.name_of("no address"), None);
    }
}
