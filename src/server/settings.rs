//! From options to what the broker runs by.

use crate::broker::auth::{Auth, Secret, User};
use crate::broker::perms::{Permissions, PublishRules, Responses, Rule, SubscribeRules};
use crate::broker::settings::{ClusterSettings, Settings};
use crate::config::Options;
use crate::config::options::{PermissionOptions, SubjectRules, TlsOptions};
use crate::config::route_url::{host_and_port, parse_host_port};
use crate::util::nkey;
use crate::wire::info::Info;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// What the process is, as against what it is told to be: it stays the same while it lives.
#[derive(Clone, Debug)]
pub struct Identity {
    pub server_id: String,
    /// Ports really bound, for clients and for routes.
    pub port: u16,
    pub cluster_port: Option<u16>,
}

pub fn settings(options: &Options, identity: &Identity) -> Result<Settings, String> {
    let server_id = &identity.server_id;
    let advertise = &options.client_advertise;
    let (host, port) = match advertise.is_empty() {
        true => (options.host.clone(), identity.port),
        false => advertised(advertise, identity.port).map_err(|error| {
            format!(
                "Error setting server INFO with ClientAdvertise value of {advertise}, err={error}"
            )
        })?,
    };
    let auth = auth(options);
    let mut name = options.server_name.clone();
    if name.is_empty() {
        name = server_id.clone();
    }
    let info = Info {
        server_id: server_id.clone(),
        server_name: name,
        version: crate::COMPATIBLE_VERSION.to_owned(),
        git_commit: crate::GIT_COMMIT.to_owned(),
        host,
        port,
        auth_required: auth.required() && options.no_auth_user.is_empty(),
        tls_required: options.tls.enabled,
        tls_verify: options.tls.enabled && (options.tls.verify || options.tls.map),
        max_payload: options.max_payload,
        proto: 1,
        headers: !options.no_header_support,
        cluster: options.cluster.name.clone(),
        ..Info::default()
    };
    let cluster = match identity.cluster_port {
        Some(cluster_port) => Some(cluster(options, identity, cluster_port, &info)?),
        None => None,
    };
    Ok(Settings {
        info,
        cluster,
        payload_bytes_max: u64::try_from(options.max_payload).unwrap_or(u64::MAX),
        control_line_bytes_max: options.max_control_line,
        subscriptions_max: usize::try_from(options.max_subscriptions)
            .ok()
            .filter(|max| *max > 0),
        subscription_tokens_max: Some(options.max_subscription_tokens).filter(|max| *max > 0),
        traced_bytes_max: Some(options.traced_bytes_max).filter(|max| *max > 0),
        nonces: options.always_enable_nonce || !auth.nkeys.is_empty(),
        pending_bytes_max: options.max_pending,
        write_deadline: options.write_deadline,
        ping_interval: options.ping_interval,
        pings_out_max: options.ping_max,
        auth,
        // The time for CONNECT begins behind the handshake.
        auth_timeout: Duration::from_secs_f64(
            options.auth_timeout + handshake_seconds(&options.tls),
        ),
    })
}

fn handshake_seconds(tls: &TlsOptions) -> f64 {
    if tls.enabled { tls.timeout } else { 0.0 }
}

/// An address to be told to others; without a port, or with none that can be, it is `default`.
fn advertised(text: &str, default: u16) -> Result<(String, u16), String> {
    let (host, port) = parse_host_port(text, default.into())?;
    Ok((host, u16::try_from(port).unwrap_or(default)))
}

fn cluster(
    options: &Options,
    identity: &Identity,
    port: u16,
    client_info: &Info,
) -> Result<ClusterSettings, String> {
    let given = &options.cluster;
    let (mut host, mut port, mut ip) = (given.host.clone(), port, String::new());
    if !given.advertise.is_empty() {
        (host, port) = advertised(&given.advertise, port).map_err(|error| {
            format!(
                "Error setting route INFO with Cluster.Advertise value of {}, err={error}",
                given.advertise
            )
        })?;
        ip = format!("nats-route://{}/", host_and_port(&host, port));
    }
    let auth = Auth {
        single: (!given.user.is_empty())
            .then(|| (given.user.clone(), Secret::new(&given.password.0))),
        ..Auth::default()
    };
    let client_urls = client_urls(options, client_info);
    let info = Info {
        server_id: identity.server_id.clone(),
        version: client_info.version.clone(),
        git_commit: client_info.git_commit.clone(),
        host,
        port,
        auth_required: auth.required(),
        tls_required: given.tls.enabled,
        tls_verify: given.tls.enabled,
        max_payload: options.max_payload,
        ip,
        connect_urls: match given.no_advertise {
            true => Vec::new(),
            false => client_urls.clone(),
        },
        headers: true,
        ..Info::default()
    };
    Ok(ClusterSettings {
        info,
        client_urls,
        no_advertise: given.no_advertise,
        auth,
        auth_timeout: Duration::from_secs_f64(given.auth_timeout + handshake_seconds(&given.tls)),
        user: given.user.clone(),
        password: given.password.clone(),
        routes: given.routes.clone(),
        connect_retries: given.connect_retries,
        pending_bytes_max: given.max_pending,
    })
}

/// Where clients reach this server: the advertised address, or the bound one, or every address of
/// the machine where that is unspecified.
fn client_urls(options: &Options, info: &Info) -> Vec<String> {
    let unspecified = options.host.is_empty()
        || options
            .host
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_unspecified());
    if !options.client_advertise.is_empty() || !unspecified {
        return vec![host_and_port(&info.host, info.port)];
    }
    let mut urls: Vec<String> = interface_addresses()
        .filter(is_global_unicast)
        .map(|ip| host_and_port(&ip.to_string(), info.port))
        .collect();
    urls.dedup();
    urls
}

/// The addresses of this machine.
pub(super) fn interface_addresses() -> impl Iterator<Item = IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
    })
}

/// Go's notion: neither unspecified, loopback, multicast, broadcast nor link-local.
fn is_global_unicast(ip: &IpAddr) -> bool {
    let special = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
    !special
        && match ip {
            IpAddr::V4(v4) => !v4.is_broadcast() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        }
}

fn auth(options: &Options) -> Auth {
    let default = options
        .default_permissions
        .as_ref()
        .map(|p| Arc::new(permissions(p)));
    let mut users = HashMap::new();
    let mut nkeys = HashMap::new();
    for user in options.users.iter().flatten() {
        let own = user.permissions.as_ref().map(|p| Arc::new(permissions(p)));
        let permissions = own.or_else(|| default.clone());
        if let Some(key) = nkey::decode_user(&user.nkey) {
            nkeys.insert(key, permissions);
        } else {
            let password = Secret::new(&user.password.0);
            let record = User {
                password,
                permissions,
            };
            users.insert(user.name.clone(), record);
        }
    }
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    Auth {
        listed: options.users.is_some(),
        users,
        nkeys,
        token: given(&options.token.0).map(|token| Secret::new(&token)),
        single: given(&options.user).map(|user| (user, Secret::new(&options.password.0))),
        no_auth_user: given(&options.no_auth_user),
        certified: options.tls.map,
    }
}

fn permissions(options: &PermissionOptions) -> Permissions {
    Permissions {
        publish: publish_rules(&options.publish),
        subscribe: subscribe_rules(&options.subscribe),
        responses: options.responses.map(|given| Responses {
            messages_max: given.messages_max,
            expires: given.expires,
        }),
    }
}

fn publish_rules(options: &SubjectRules) -> PublishRules {
    let set = |texts: &Vec<String>| texts.iter().map(|text| rule_words(text).0).collect();
    PublishRules {
        allow: options.allow.as_ref().map(set),
        deny: set(&options.deny),
    }
}

fn subscribe_rules(options: &SubjectRules) -> SubscribeRules {
    let rule = |text: &String| {
        let (subject, queue) = rule_words(text);
        Rule {
            subject: subject.into(),
            queue: queue.map(Box::from),
        }
    };
    let rules = |texts: &Vec<String>| texts.iter().map(rule).collect();
    SubscribeRules::new(options.allow.as_ref().map(rules), rules(&options.deny))
}

/// A subject, and perhaps the name of a queue group behind it.
fn rule_words(text: &str) -> (&[u8], Option<&[u8]>) {
    let mut words = text.split_whitespace().map(str::as_bytes);
    (words.next().unwrap_or_default(), words.next())
}
