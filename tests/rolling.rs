//! A cluster whose servers are restarted one after the other under load: clients of a real library go
//! elsewhere, and requests are answered again soon.

mod support;

use async_nats::{Client, ConnectOptions};
use futures::StreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::{PATIENCE, Server, free_port};

const SERVERS: usize = 3;
/// Each server is restarted so often.
const ROUNDS: usize = 2;
/// What servers may need more in a later round than in the first, in which their buffers grow to what
/// a turn needs.
const GROWTH_BYTES_MAX: u64 = 4 << 20;

struct Node {
    server: Option<Server>,
    port: u16,
    arguments: Vec<String>,
}

impl Node {
    fn start(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.server = Some(Server::start_at(self.port, &arguments));
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("it runs")
    }
}

fn cluster() -> Vec<Node> {
    let ports: Vec<u16> = (0..SERVERS).map(|_| free_port()).collect();
    let routes: Vec<String> = ports
        .iter()
        .map(|port| format!("nats://127.0.0.1:{port}"))
        .collect();
    let node = |own: &String| Node {
        server: None,
        port: free_port(),
        arguments: [
            "--threads",
            "2",
            "-D",
            "--cluster",
            own,
            "--routes",
            &routes.join(","),
        ]
        .map(str::to_owned)
        .into(),
    };
    let mut nodes: Vec<Node> = routes.iter().map(node).collect();
    nodes.iter_mut().for_each(Node::start);
    nodes
}

/// Waits for a server to have routes to the two others.
async fn joined(server: &Server) {
    let start = Instant::now();
    while server.log().matches("Registering remote route").count() < SERVERS - 1 {
        assert!(start.elapsed() < PATIENCE, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Knows all servers, and begins with one of them.
async fn client(nodes: &[Node], first: usize) -> Client {
    let mut ports: Vec<u16> = nodes.iter().map(|node| node.port).collect();
    ports.rotate_left(first);
    let urls: Vec<String> = ports
        .iter()
        .map(|port| format!("nats://127.0.0.1:{port}"))
        .collect();
    ConnectOptions::new()
        .retain_servers_order()
        .request_timeout(Some(Duration::from_millis(500)))
        .connect(urls)
        .await
        .unwrap()
}

/// Answers requests until the connection is closed for good.
async fn serve(client: Client) {
    let mut requests = client
        .queue_subscribe("service", "workers".into())
        .await
        .unwrap();
    while let Some(request) = requests.next().await {
        let reply = request.reply.unwrap();
        let _ = client.publish(reply, request.payload).await;
    }
}

/// Counts requests that were answered, one after the other.
async fn ask(client: Client, answered: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let mut number = 0u64;
    while !stop.load(SeqCst) {
        number += 1;
        let payload = number.to_le_bytes().to_vec();
        if let Ok(answer) = client.request("service", payload.into()).await {
            assert_eq!(answer.payload[..], number.to_le_bytes());
            answered.fetch_add(1, SeqCst);
        } else {
            // Nobody is there at the moment.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Messages from every server to every other one.
async fn load(client: Client, stop: Arc<AtomicBool>) {
    let mut echo = client.subscribe("load.*").await.unwrap();
    tokio::spawn(async move { while echo.next().await.is_some() {} });
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    while !stop.load(SeqCst) {
        tick.tick().await;
        for number in 0..10 {
            let _ = client
                .publish(format!("load.{number}"), vec![b'.'; 200].into())
                .await;
        }
    }
}

/// How long it takes until each asker has had an answer to a question asked from now on.
async fn recovery(counters: &[Arc<AtomicU64>]) -> Duration {
    let start = Instant::now();
    // The first answer may be to a question asked before.
    let goals: Vec<u64> = counters
        .iter()
        .map(|counter| counter.load(SeqCst) + 2)
        .collect();
    while counters
        .iter()
        .zip(&goals)
        .any(|(counter, goal)| counter.load(SeqCst) < *goal)
    {
        assert!(
            start.elapsed() < PATIENCE,
            "requests hang: {counters:?}, waiting for {goals:?}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_recover_from_every_restart() {
    let mut nodes = cluster();
    for node in &nodes {
        joined(node.server()).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut counters = Vec::new();
    let mut tasks = Vec::new();
    for first in 0..SERVERS {
        tokio::spawn(serve(client(&nodes, first).await));
        tasks.push(tokio::spawn(load(
            client(&nodes, first).await,
            stop.clone(),
        )));
        let counter = Arc::new(AtomicU64::new(0));
        counters.push(counter.clone());
        tasks.push(tokio::spawn(ask(
            client(&nodes, first).await,
            counter,
            stop.clone(),
        )));
    }
    eprintln!("first answers after {:?}", recovery(&counters).await);
    // Of servers that have seen others come and go, the most in each round.
    let mut memory = [0; ROUNDS + 1];
    for (round, index) in (0..ROUNDS).flat_map(|round| (0..SERVERS).map(move |i| (round, i))) {
        let node = &mut nodes[index];
        let server = node.server.take().unwrap();
        memory[round] = server.memory().max(memory[round]);
        tokio::task::spawn_blocking(|| server.stop()).await.unwrap();
        let lost = recovery(&counters).await;
        node.start();
        joined(node.server()).await;
        let back = recovery(&counters).await;
        eprintln!("server {index}: answers {lost:?} after its end, {back:?} after its return");
    }
    for node in &nodes {
        memory[ROUNDS] = node.server().memory().max(memory[ROUNDS]);
    }
    eprintln!("memory: {memory:?}");
    // Nothing of servers and clients that left may have stayed.
    for later in &memory[1..] {
        assert!(*later < memory[0] + GROWTH_BYTES_MAX, "{memory:?}");
    }
    stop.store(true, SeqCst);
    for task in tasks {
        tokio::time::timeout(PATIENCE, task)
            .await
            .expect("nothing hangs")
            .unwrap();
    }
    for node in nodes {
        node.server.unwrap().stop();
    }
}
