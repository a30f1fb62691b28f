//! Requests to the streaming server, one after the other.

use super::options::Options;
use crate::server::nats_client::{NatsClient, Terms};
use crate::stan::outlet::{Inlet, Outlet};
use crate::util::random::Random;
use nix::poll::PollFlags;
use serde_json::Value;
use std::time::{Duration, Instant};

const INBOX: Inlet = Inlet(1);

pub struct Requests {
    client: NatsClient,
    /// Prefix of the subjects answers come on, without the number of the request.
    inbox: String,
    prefix: String,
    cluster_id: String,
    asked: u64,
    timeout: Duration,
}

impl Requests {
    pub fn connect(options: &Options) -> Result<Self, String> {
        let terms = Terms {
            name: "midge stan".into(),
            credentials: options.credentials.clone(),
            tls: options.tls.clone(),
            no_responders: true,
        };
        let mut client = NatsClient::connect(&options.servers, &terms)?;
        let inbox = format!("_INBOX.{}", Random::from_entropy().id());
        client.output().subscribe(INBOX, &format!("{inbox}.*"));
        Ok(Self {
            client,
            inbox,
            prefix: format!("_STAN_ADMIN.{}", options.cluster_id),
            cluster_id: options.cluster_id.clone(),
            asked: 0,
            timeout: options.timeout,
        })
    }

    /// The answer to one request; an error it holds is ours.
    pub fn ask(&mut self, verb: &str, request: &Value) -> Result<Value, String> {
        self.asked += 1;
        let subject = format!("{}.{verb}", self.prefix);
        let inbox = format!("{}.{}", self.inbox, self.asked);
        let payload = request.to_string();
        let output = self.client.output();
        output.publish(&subject, Some(&inbox), payload.as_bytes());
        let until = Instant::now() + self.timeout;
        let answer = loop {
            self.client.flush().map_err(|error| lost(&error))?;
            let mut answer = None;
            let read = self.client.receive(|incoming, _| {
                if incoming.subject == inbox {
                    answer = Some((incoming.headers.to_vec(), incoming.payload.to_vec()));
                }
            });
            let read = read.map_err(|error| lost(&error))?;
            if let Some(violation) = self.client.take_violations().first() {
                return Err(format!("the NATS server does not allow it: {violation}"));
            }
            if let Some(answer) = answer {
                break answer;
            }
            if read == 0 {
                let waited = self.client.wait_for(PollFlags::POLLIN, until, "an answer");
                waited.map_err(|error| format!("{error}: {}", self.nobody()))?;
            }
        };
        let (headers, payload) = answer;
        if headers.starts_with(b"NATS/1.0 503") {
            return Err(self.nobody());
        }
        let answer: Value = serde_json::from_slice(&payload)
            .map_err(|error| format!("the answer is no JSON ({error})"))?;
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer),
        }
    }

    /// The same for a list that comes in several answers.
    pub fn list(&mut self, verb: &str, mut request: Value, name: &str) -> Result<Value, String> {
        let mut whole = self.ask(verb, &request)?;
        loop {
            let more = whole["more"].take();
            let Some(after) = more.as_str() else {
                break;
            };
            request["after"] = after.into();
            let mut next = self.ask(verb, &request)?;
            let items = next[name].take();
            if let (Some(list), Value::Array(items)) = (whole[name].as_array_mut(), items) {
                list.extend(items);
            }
            whole["more"] = next["more"].take();
        }
        if let Some(fields) = whole.as_object_mut() {
            fields.remove("more");
        }
        Ok(whole)
    }

    fn nobody(&self) -> String {
        format!(
            "no streaming server with cluster ID {:?} answers there (--cid names another; servers other than midge do not know these requests)",
            self.cluster_id
        )
    }
}

fn lost(error: &std::io::Error) -> String {
    format!("the connection to the NATS server is lost: {error}")
}
