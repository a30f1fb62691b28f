use midge::broker::settings::Settings;
use midge::server::{ServerOptions, run};
fn main() {
    let mut args = std::env::args().skip(1);
    let mut options = ServerOptions {
        host: "0.0.0.0".into(),
        port: 4222,
        threads: 1,
        connections_max: 65536,
        settings: Settings::default(),
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_default();
        match arg.as_str() {
            "-a" => options.host = value(),
            "-p" => options.port = value().parse().unwrap(),
            "--threads" => options.threads = value().parse().unwrap(),
            _ => {}
        }
    }
    options.settings.info.max_payload = 1 << 20;
    options.settings.info.version = "1.1.0".into();
    options.settings.info.headers = true;
    options.settings.info.proto = 1;
    options.settings.info.host = options.host.clone();
    if let Err(error) = run(options) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
