//! Whether another streaming server has our cluster ID: asked at the start, and again when routes come up.

use super::dial::Routes;
use super::nats_client::{Incoming, NatsClient, Output};
use crate::stan::outlet::{Inlet, Outlet};
use crate::stan::pb;
use crate::util::random::Random;
use nix::poll::PollFlags;
use prost::Message;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long another server of the same cluster ID has to answer at the start.
const PROBE_TIME: Duration = Duration::from_millis(250);
const PROBE_EVERY: Duration = Duration::from_millis(25);
/// The time counts from when the routes were dialled, which may take this long.
const ROUTES_TIME_MAX: Duration = Duration::from_secs(2);
/// So many probes, a second apart, when a route has come up: interest takes a moment to cross it.
const PROBES: u32 = 3;

/// Of answers to a probe.
pub const ANSWERS: Inlet = Inlet(99);

/// A request that every server of our cluster ID answers.
pub struct Probe {
    cluster_id: String,
    discovery: String,
    inbox: String,
}

impl Probe {
    pub fn new(info: &pb::ServerInfo) -> Self {
        Self {
            cluster_id: info.cluster_id.clone(),
            discovery: info.discovery.clone(),
            inbox: format!("_INBOX.{}", Random::from_entropy().id()),
        }
    }

    fn send(&self, output: &mut Output) {
        // Without a heartbeat inbox it is refused, so it leaves no trace there.
        let request = pb::ConnectRequest {
            client_id: self.cluster_id.clone(),
            ..pb::ConnectRequest::default()
        };
        output.publish(&self.discovery, Some(&self.inbox), &request.encode_to_vec());
    }

    fn is_answer(incoming: &Incoming<'_>) -> bool {
        incoming.inlet == ANSWERS
            && incoming.headers.is_empty()
            && pb::ConnectResponse::decode(incoming.payload).is_ok()
    }

    fn found(&self) -> String {
        format!(
            "discovered another streaming server with cluster ID {:?}",
            self.cluster_id
        )
    }

    /// Fails when somebody answers to our cluster ID already. What asks for it crosses a route after the connection has come up, so
    /// it is asked again and again, and the time counts from when all routes `are_tried`.
    pub fn look_for_another(
        &self,
        client: &mut NatsClient,
        are_tried: impl Fn() -> bool,
    ) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("connection to NATS: {error}");
        client.output().subscribe(ANSWERS, &self.inbox);
        let begun = Instant::now();
        let mut until = begun + PROBE_TIME;
        let mut again = begun;
        let mut answered = false;
        while !answered && Instant::now() < until {
            let now = Instant::now();
            if now >= again {
                self.send(client.output());
                again = now + PROBE_EVERY;
            }
            if begun.elapsed() < ROUTES_TIME_MAX && !are_tried() {
                until = now + PROBE_TIME;
            }
            client.flush().map_err(failed)?;
            let read = client.receive(|incoming, _| answered |= Self::is_answer(&incoming));
            if read.map_err(failed)? == 0 {
                // Too late is what is hoped for.
                let _ = client.wait_for(PollFlags::POLLIN, again.min(until), "another server");
            }
        }
        client.output().unsubscribe(ANSWERS);
        match answered {
            true => Err(self.found()),
            false => Ok(()),
        }
    }
}

/// Looks again when routes come up while we serve: both sides may have started alone.
pub struct Watch {
    probe: Probe,
    routes: Arc<Routes>,
    /// Of routes, when they were looked at last.
    opened: usize,
    probes_left: u32,
    /// To the probe that is out; the first one is ours.
    answers: Option<u32>,
}

impl Watch {
    pub fn new(probe: Probe, routes: &Arc<Routes>) -> Self {
        Self {
            probe,
            routes: routes.clone(),
            opened: 0,
            probes_left: 0,
            answers: None,
        }
    }

    pub fn count(&mut self, incoming: &Incoming<'_>) {
        if Probe::is_answer(incoming) {
            self.answers = self.answers.map(|answers| answers + 1);
        }
    }

    /// To be called every second or so.
    pub fn go_on(&mut self, output: &mut Output) {
        if let Some(answers) = self.answers.take() {
            output.unsubscribe(ANSWERS);
            if answers > 1 {
                self.probes_left = 0;
                log::error!(
                    "STREAM: {}: both serve every request; stop one of them",
                    self.probe.found()
                );
            }
        }
        let opened = self.routes.opened();
        if std::mem::replace(&mut self.opened, opened) != opened {
            self.probes_left = PROBES;
        }
        if self.probes_left > 0 {
            self.probes_left -= 1;
            self.answers = Some(0);
            // A late answer to the last one does not count.
            self.probe.inbox = format!("_INBOX.{}", Random::from_entropy().id());
            output.subscribe(ANSWERS, &self.probe.inbox);
            self.probe.send(output);
        }
    }
}
