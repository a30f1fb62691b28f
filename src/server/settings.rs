//! From options to what the broker runs by.

use crate::broker::auth::{Auth, Secret, User};
use crate::broker::perms::{Permissions, Responses, Rule, Rules};
use crate::broker::settings::Settings;
use crate::config::Options;
use crate::config::options::{PermissionOptions, SubjectRules};
use crate::util::nkey;
use crate::wire::info::Info;
use std::collections::HashMap;
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
        headers: !options.no_header_support,
        ..Info::default()
    };
    Ok(Settings {
        info,
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
    let mut users = HashMap::new();
    let mut nkeys = HashMap::new();
    for user in &options.users {
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
        users,
        nkeys,
        token: given(&options.token.0).map(|token| Secret::new(&token)),
        single: given(&options.user).map(|user| (user, Secret::new(&options.password.0))),
        no_auth_user: given(&options.no_auth_user),
    }
}

fn permissions(options: &PermissionOptions) -> Permissions {
    Permissions {
        publish: rules(&options.publish),
        subscribe: rules(&options.subscribe),
        responses: options.responses.map(|given| Responses {
            messages_max: given.messages_max,
            expires: given.expires,
        }),
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
