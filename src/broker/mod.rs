//! The sans-io heart: clients, subscriptions, delivery.
