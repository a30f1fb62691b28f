//! From options to what the broker runs by.

use crate::broker::auth::{Auth, Secret, User};
use crate::broker::perms::{Permissions, Rule, Rules};
use crate::broker::settings::Settings;
use crate::config::Options;
use crate::config::options::{PermissionOptions, SubjectRules};
use crate::wire::info::Info;
use std::sync::Arc;
use std::time::Duration;

/// `port` is the one clients reach us at; `server_id` stays the same while the process lives.
pub fn settings(options: &Options, server_id: &str, port: u16) -> Result<Settings, String> {
    let (host, port) = advertised(options, port)?;
    let auth = auth(options);
    let mut name = options.server_name.clone();
    if name.is_empty() {
        name = server_id.to_owned();
    }
    let info = Info {
        server_id: server_id.to_owned(),
        server_name: name,
        version: crate::COMPATIBLE_VERSION.to_owned(),
        git_commit: crate::GIT_COMMIT.to_owned(),
        host,
        port,
        auth_required: auth.required() && options.no_auth_user.is_empty(),
        max_payload: options.max_payload,
        proto: 1,
        headers: true,
        ..Info::default()
    };
    Ok(Settings {
        info,
        payload_bytes_max: u64::try_from(options.max_payload).unwrap_or(u64::MAX),
        control_line_bytes_max: options.max_control_line,
        subscriptions_max: usize::try_from(options.max_subscriptions)
            .ok()
            .filter(|max| *max > 0),
        pending_bytes_max: options.max_pending,
        write_deadline: options.write_deadline,
        ping_interval: options.ping_interval,
        pings_out_max: options.ping_max,
        auth,
        auth_timeout: Duration::from_secs_f64(options.auth_timeout),
    })
}

/// Host and port told to clients.
fn advertised(options: &Options, port: u16) -> Result<(String, u16), String> {
    let advertise = &options.client_advertise;
    if advertise.is_empty() {
        return Ok((options.host.clone(), port));
    }
    let Some((host, given)) = advertise
        .rsplit_once(':')
        .filter(|(host, _)| !host.contains(':') || host.ends_with(']'))
    else {
        return Ok((advertise.clone(), port));
    };
    let given: i32 = given.parse().map_err(|error| {
        format!("Error setting server INFO with ClientAdvertise value of {advertise}, err={error}")
    })?;
    let given = u16::try_from(given)
        .ok()
        .filter(|given| *given > 0)
        .unwrap_or(port);
    Ok((host.trim_matches(['[', ']']).to_owned(), given))
}

fn auth(options: &Options) -> Auth {
    let default = options
        .default_permissions
        .as_ref()
        .map(|p| Arc::new(permissions(p)));
    let users = options.users.iter().map(|user| {
        let own = user.permissions.as_ref().map(|p| Arc::new(permissions(p)));
        let record = User {
            password: Secret::new(&user.password.0),
            permissions: own.or_else(|| default.clone()),
        };
        (user.name.clone(), record)
    });
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    Auth {
        users: users.collect(),
        token: given(&options.token.0).map(|token| Secret::new(&token)),
        single: given(&options.user).map(|user| (user, Secret::new(&options.password.0))),
        no_auth_user: given(&options.no_auth_user),
    }
}

fn permissions(options: &PermissionOptions) -> Permissions {
    Permissions {
        publish: rules(&options.publish),
        subscribe: rules(&options.subscribe),
    }
}

fn rules(options: &SubjectRules) -> Rules {
    let rule = |text: &String| {
        let mut words = text.split_whitespace();
        let subject = words.next().unwrap_or("").as_bytes().into();
        Rule {
            subject,
            queue: words.next().map(|queue| queue.as_bytes().into()),
        }
    };
    Rules {
        allow: options
            .allow
            .as_ref()
            .map(|allow| allow.iter().map(rule).collect()),
        deny: options.deny.iter().map(rule).collect(),
    }
}
