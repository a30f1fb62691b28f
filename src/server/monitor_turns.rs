//! Who of the monitoring port may do what when: long documents one or two at a time, in the order in which they
//! were asked for; and a bounded number of connections, of which idle ones make room.

use crate::util::lock;
use std::collections::{HashMap, VecDeque};
use std::net::{Shutdown, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// So many at a time go through, the others wait in a row.
pub struct Turnstile {
    row: Mutex<Row>,
    changed: Condvar,
    waiting_max: usize,
}

struct Row {
    free: usize,
    waiting: VecDeque<u64>,
    next: u64,
}

/// Ends with this value.
pub struct Turn<'a>(&'a Turnstile);

impl Turnstile {
    pub fn new(at_a_time: usize, waiting_max: usize) -> Self {
        Self {
            row: Mutex::new(Row {
                free: at_a_time,
                waiting: VecDeque::new(),
                next: 0,
            }),
            changed: Condvar::new(),
            waiting_max,
        }
    }

    fn row(&self) -> MutexGuard<'_, Row> {
        lock(&self.row)
    }

    /// None: the row is too long, or moved too slowly.
    pub fn enter(&self, patience: Duration) -> Option<Turn<'_>> {
        let until = Instant::now() + patience;
        let mut row = self.row();
        if row.free == 0 && row.waiting.len() >= self.waiting_max {
            return None;
        }
        let ticket = row.next;
        row.next += 1;
        row.waiting.push_back(ticket);
        loop {
            if row.free > 0 && row.waiting.front() == Some(&ticket) {
                row.waiting.pop_front();
                row.free -= 1;
                self.changed.notify_all();
                return Some(Turn(self));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                row.waiting.retain(|other| *other != ticket);
                self.changed.notify_all();
                return None;
            }
            let waited = self.changed.wait_timeout(row, left);
            row = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    pub fn somebody_waits(&self) -> bool {
        !self.row().waiting.is_empty()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.row().free += 1;
        self.0.changed.notify_all();
    }
}

/// The connections there are.
pub struct Guests {
    list: Mutex<List>,
    max: usize,
    refused_max: usize,
    idle_after: Duration,
}

#[derive(Default)]
struct List {
    next: u64,
    guests: HashMap<u64, Guest>,
    /// Those above the limit, which are about to hear so.
    refused: usize,
}

struct Guest {
    socket: TcpStream,
    /// Without a whole request since then; None: it is being answered.
    idle_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Served(u64),
    /// It is to be told that there are too many.
    Refused,
}

impl Guests {
    pub fn new(max: usize, refused_max: usize, idle_after: Duration) -> Self {
        Self {
            list: Mutex::default(),
            max,
            refused_max,
            idle_after,
        }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        lock(&self.list)
    }

    /// None: not even worth an answer. Whoever has been idle longest makes room.
    pub fn admit(&self, socket: &TcpStream) -> Option<Admission> {
        let socket = socket.try_clone().ok()?;
        let list = &mut *self.list();
        if list.guests.len() >= self.max {
            let idle = list.guests.iter();
            let idle = idle.filter_map(|(id, guest)| Some((guest.idle_since?, *id)));
            match idle.min() {
                Some((since, id)) if since.elapsed() >= self.idle_after => {
                    if let Some(guest) = list.guests.remove(&id) {
                        // Wakes its thread, which finds itself struck off.
                        let _ = guest.socket.shutdown(Shutdown::Both);
                    }
                }
                _ if list.refused < self.refused_max => {
                    list.refused += 1;
                    return Some(Admission::Refused);
                }
                _ => return None,
            }
        }
        let id = list.next;
        list.next += 1;
        let idle_since = Some(Instant::now());
        list.guests.insert(id, Guest { socket, idle_since });
        Some(Admission::Served(id))
    }

    pub fn gone(&self, admission: Admission) {
        let mut list = self.list();
        match admission {
            Admission::Served(id) => drop(list.guests.remove(&id)),
            Admission::Refused => list.refused -= 1,
        }
    }

    /// A whole request is there, or has been answered; false for one that had to make room.
    pub fn set_idle(&self, admission: Admission, idle: bool) -> bool {
        let Admission::Served(id) = admission else {
            return true;
        };
        match self.list().guests.get_mut(&id) {
            None => false,
            Some(guest) => {
                guest.idle_since = idle.then(Instant::now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn turns_come_in_order() {
        let turnstile = Arc::new(Turnstile::new(1, 3));
        let first = turnstile.enter(LONG);
        assert!(first.is_some() && !turnstile.somebody_waits());
        let (sender, receiver) = channel();
        let threads: Vec<_> = (0..3)
            .map(|number| {
                let (in_row, sender) = (turnstile.clone(), sender.clone());
                let thread = std::thread::spawn(move || {
                    let turn = in_row.enter(LONG);
                    sender.send((number, turn.is_some())).unwrap();
                });
                while turnstile.row().waiting.len() <= number {
                    std::thread::yield_now();
                }
                thread
            })
            .collect();
        assert!(turnstile.enter(LONG).is_none(), "the row is full");
        drop(first);
        for number in 0..3 {
            assert_eq!(receiver.recv().unwrap(), (number, true));
        }
        for thread in threads {
            thread.join().unwrap();
        }
        let _turn = turnstile.enter(Duration::ZERO).unwrap();
        assert!(turnstile.enter(Duration::ZERO).is_none());
        assert!(!turnstile.somebody_waits());
    }

    #[test]
    fn idle_ones_make_room() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = || TcpStream::connect(address).unwrap();
        let guests = Guests::new(2, 1, Duration::ZERO);
        let [first, second] = [(), ()].map(|()| guests.admit(&socket()).unwrap());
        assert!(guests.set_idle(first, false));
        let third = guests.admit(&socket()).unwrap();
        assert!(!guests.set_idle(second, false), "it had to go");
        assert!(guests.set_idle(third, false));
        assert_eq!(guests.admit(&socket()), Some(Admission::Refused));
        assert_eq!(guests.admit(&socket()), None);
        guests.gone(Admission::Refused);
        guests.gone(second);
        assert_eq!(guests.admit(&socket()), Some(Admission::Refused));
        guests.gone(first);
        assert!(matches!(
            guests.admit(&socket()),
            Some(Admission::Served(_))
        ));
    }
}
