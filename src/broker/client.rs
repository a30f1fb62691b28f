//! The record of one connection, socket or route.
//!
//! ```text
//!            handle_bytes / delivery            error, limit, peer gone
//!    Open ------------------------------> Open -------------------------> Closing ---> (released)
//!      its subscriptions are in the table           they go (`broker::pace`) and get nothing; what is
//!                                                    pending may still leave
//! ```

use super::outbox::Outbox;
use super::perms::{Answers, Permissions};
use super::route::Route;
use crate::wire::connect::Connect;
use crate::wire::parser::{Kind, Parser};
use hashbrown::HashTable;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// Names a publisher across loops. The cid says which loop it is on (`Broker::loop_of`), and guards against a
/// slot that was reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PublisherRef {
    pub slot: u32,
    pub cid: u64,
    /// A route, or a part of this process: it carries messages of many, for many.
    pub carrier: bool,
    /// It does not want its own messages.
    pub no_echo: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Open,
    Closing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub messages_in: u64,
    pub messages_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// What a TLS connection agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInfo {
    pub version: &'static str,
    pub cipher_suite: Box<str>,
    /// The names in the peer's verified certificate; see [`super::auth::Shown`].
    pub names: Vec<String>,
}

#[derive(Debug)]
pub struct Client {
    pub outbox: Outbox,
    pub traffic: Traffic,
    pub cid: u64,
    pub phase: Phase,
    /// The last run that looked at it (see `broker::runs`).
    pub visit: u32,
    /// On the list of the next flush pass.
    pub dirty: bool,
    /// HMSG may be sent and HPUB is taken.
    pub headers: bool,
    pub echo: bool,
    pub verbose: bool,
    pub pedantic: bool,
    pub no_responders: bool,
    /// Authorization is required and no good CONNECT has come.
    pub unauthorized: bool,
    /// A part of this process, the streaming engine: always authorized, and never cut off for being slow or
    /// silent.
    pub internal: bool,
    /// A password is being checked elsewhere; input that came meanwhile waits in `deferred`.
    pub verifying: bool,
    /// It is the password of a CONNECT, which wants an answer, not one checked again after a reload.
    pub answer_connect: bool,
    /// A reload asked for the check (too): subscriptions that are not allowed any more end with it.
    pub judged_again: bool,
    /// Whoever checks it need not go on once this is gone.
    pub ticket: Option<Arc<()>>,
    pub deferred: Vec<u8>,
    /// Its first PING after CONNECT was answered: from here on it takes another INFO.
    pub first_pong_sent: bool,
    /// INFO changed before that; it is told right behind the PONG.
    pub info_is_old: bool,
    /// A timer looks after the progress of its output.
    pub watched: bool,
    /// Made no progress for a while; holds no publisher back until it does.
    pub stuck: bool,
    /// It is in the list of receivers above their high-water marks.
    pub listed_behind: bool,
    pub pings_out: u32,
    /// Its own output is so far behind that nothing more is read from it.
    pub choked: bool,
    /// It made many changes of interest, and is not read from until other servers have taken them in.
    pub paced: bool,
    /// Of its subscriptions, those that are members of queue groups.
    pub members: u32,
    /// Closed, and its subscriptions are being taken out.
    pub leaving: bool,
    /// The kernel holds nothing of it any more.
    pub released: bool,
    /// Bytes of lines of our own, answers most of all, since little was pending.
    pub own_lines: usize,
    /// Receivers whose backlog holds this publisher back.
    pub held_by: u32,
    pub kind: Kind,
    pub permissions: Option<Arc<Permissions>>,
    /// Subjects it may answer on, where its permissions let it answer; rare, hence boxed.
    pub answers: Option<Box<Answers>>,
    /// There exactly where `kind` is Route.
    pub route: Option<Box<Route>>,
    /// Once a TLS handshake is done.
    pub tls: Option<Box<TlsInfo>>,
    pub parser: Parser,
    /// Subscriptions by sid.
    pub subscriptions: HashTable<u32>,
    /// What CONNECT said; None until then.
    pub connect: Option<Box<Connect>>,
    /// Publishers this receiver holds back; rare, hence boxed.
    pub holding: Option<Box<Holding>>,
    /// While output is pending: when the kernel last took some.
    pub progress_at: Option<Instant>,
    pub peer: SocketAddr,
    pub started_at: SystemTime,
    /// Last CONNECT, SUB, UNSUB, or message in or out, by the loop's clock.
    pub active_at: Option<Instant>,
    /// `traffic.messages_out` at the last write.
    pub messages_written: u64,
}

/// The publishers a receiver holds back.
#[derive(Debug, Default)]
pub struct Holding {
    pub publishers: Vec<Held>,
    /// When it is looked at next. A timer for another time finds nothing to do.
    pub look_at: Option<Instant>,
}

#[derive(Debug)]
pub struct Held {
    pub publisher: PublisherRef,
    /// Of the receivers of its message nearly all were behind, not this one among others that keep up.
    pub nearly_all: bool,
    /// When it is let go at the latest, for good where it is one of few.
    pub until: Instant,
}

impl Client {
    /// What counts beside its CONNECT.
    pub fn shown(&self, nonce: Option<super::auth::Nonce>) -> super::auth::Shown<'_> {
        super::auth::Shown {
            nonce,
            certificate: self.tls.as_ref().map_or(&[], |tls| &tls.names),
        }
    }

    pub fn is_registered_route(&self) -> bool {
        self.route
            .as_ref()
            .is_some_and(|route| route.info.is_some())
    }

    pub fn new(cid: u64, kind: Kind, peer: SocketAddr, unauthorized: bool) -> Self {
        let defaults = Connect::default();
        Self {
            outbox: Outbox::default(),
            traffic: Traffic::default(),
            cid,
            phase: Phase::Open,
            visit: 0,
            dirty: false,
            headers: false,
            echo: true,
            verbose: defaults.verbose && kind == Kind::Client,
            pedantic: defaults.pedantic && kind == Kind::Client,
            no_responders: false,
            unauthorized,
            internal: false,
            own_lines: 0,
            verifying: false,
            answer_connect: false,
            judged_again: false,
            ticket: None,
            deferred: Vec::new(),
            first_pong_sent: false,
            info_is_old: false,
            stuck: false,
            listed_behind: false,
            pings_out: 0,
            choked: false,
            paced: false,
            members: 0,
            leaving: false,
            released: false,
            held_by: 0,
            watched: false,
            kind,
            permissions: None,
            answers: None,
            route: None,
            tls: None,
            parser: Parser::new(kind),
            subscriptions: HashTable::new(),
            connect: None,
            holding: None,
            progress_at: None,
            peer,
            started_at: SystemTime::now(),
            active_at: None,
            messages_written: 0,
        }
    }

    /// Clients of protocol 1 take INFO at any time.
    pub fn understands_info(&self) -> bool {
        self.connect
            .as_ref()
            .is_some_and(|connect| connect.protocol >= 1)
    }

    pub fn name(&self) -> &str {
        self.connect.as_ref().map_or("", |connect| &connect.name)
    }

    /// Logs a line on its way out as gnatsd does: without a word on INFO, the sign of +OK, or the
    /// quotes of an error.
    #[cold]
    pub fn trace_out(&self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end().trim_start_matches('+');
        match line.strip_prefix("-ERR ") {
            Some(text) => log::trace!("{} - <<- [-ERR {}]", self.label(), text.trim_matches('\'')),
            None if line.starts_with("INFO ") => {}
            None => log::trace!("{} - <<- [{line}]", self.label()),
        }
    }

    /// What a connection said of itself, for the log.
    pub fn introduction(&self) -> String {
        let Some(connect) = &self.connect else {
            return String::new();
        };
        let mut text = format!("Client is {:?}", connect.name);
        if !connect.lang.is_empty() {
            text += &format!(", {:?} {:?}", connect.lang, connect.version);
        }
        for (what, who) in [("user", &connect.user), ("nkey", &connect.nkey)] {
            if !who.is_empty() {
                text += &format!(", {what} {who:?}");
            }
        }
        text
    }

    /// gnatsd's way to name a connection in the log.
    pub fn label(&self) -> String {
        let kind = if self.kind == Kind::Client {
            "cid"
        } else {
            "rid"
        };
        format!("{} - {kind}:{}", self.peer, self.cid)
    }
}
