//! Answers to requests that change what is kept of clients and durables: they leave when that is durable.
//!
//! Where the disk has no room for it they say so instead. A new subscription is taken back then; what ended has ended, and that
//! goes to the disk when there is room, so after a crash before that it is there again.
//!
//! What a request does happens at once; it is the answer that waits, and deliveries to the subscription it is about.

use super::Engine;
use crate::stan::clients::ChannelIndex;
use crate::stan::outlet::Outlet;
use crate::stan::subs::Sub;
use prost::Message;

/// The subscription an answer is about.
#[derive(Clone, Copy)]
pub(super) struct About {
    pub index: ChannelIndex,
    pub id: u64,
    /// A durable that comes back: what is pending goes out again.
    pub resumed: bool,
}

/// Encodes an answer that says why not.
pub(super) type Refusal = fn(&str) -> Vec<u8>;

pub(super) struct Answer {
    commit: u64,
    reply: Option<Box<str>>,
    response: Vec<u8>,
    /// What to say instead when it cannot be made durable; None: it reports a failure already.
    refusal: Option<Refusal>,
    about: Option<About>,
}

/// At once.
pub(super) fn answer(reply: Option<&str>, response: &impl Message, out: &mut dyn Outlet) {
    if let Some(reply) = reply {
        out.publish(reply, None, &response.encode_to_vec());
    }
}

impl Engine {
    /// Answers when everything recorded so far is durable, and then begins to deliver.
    pub(super) fn answer_durably(
        &mut self,
        reply: Option<&str>,
        response: Vec<u8>,
        refusal: Option<Refusal>,
        about: Option<About>,
        out: &mut dyn Outlet,
    ) {
        let answer = Answer {
            commit: self.store.next_commit().unwrap_or(0),
            reply: reply.map(Into::into),
            response,
            refusal,
            about,
        };
        if let Some(About { index, id, .. }) = about
            && let Some(sub) = self.channel(index).subs.get_mut(&id)
        {
            sub.unanswered += 1;
        }
        // A failure promises nothing; it only keeps its place in the line.
        let nothing_to_wait_for = refusal.is_none() && self.waiting.is_empty();
        match nothing_to_wait_for || answer.commit <= self.store.committed() {
            true => self.answer_now(&answer, out),
            false => self.waiting.push_back(answer),
        }
    }

    /// What waited for a commit that found no room.
    pub(super) fn refuse_answers(&mut self, out: &mut dyn Outlet) -> bool {
        let Some((commit, error)) = self.store.refused() else {
            return false;
        };
        log::error!("STREAM: {error}");
        let text = error.to_string();
        while let Some(answer) = self.waiting.front()
            && answer.commit <= commit
            && let Some(answer) = self.waiting.pop_front()
        {
            self.refuse_answer(&answer, &text, out);
        }
        true
    }

    fn refuse_answer(&mut self, answer: &Answer, error: &str, out: &mut dyn Outlet) {
        let Some(refusal) = answer.refusal else {
            return self.answer_now(answer, out);
        };
        if let Some(reply) = &answer.reply {
            out.publish(reply, None, &refusal(error));
        }
        let Some(About { index, id, resumed }) = answer.about else {
            return;
        };
        let Some(sub) = self.answered(index, id) else {
            return;
        };
        // Its client does not know of it. Of a group the place stays: others may have joined meanwhile.
        if sub.active && sub.unanswered == 0 {
            let for_good = !resumed && sub.state.queue_group.is_empty();
            self.end_sub(index, id, for_good, out);
        }
    }

    /// The subscription an answer was about; channel and subscription may have gone meanwhile.
    fn answered(&mut self, index: ChannelIndex, id: u64) -> Option<&mut Sub> {
        let channel = self.channels.get_mut(index)?.as_mut()?;
        let sub = channel.subs.get_mut(&id)?;
        sub.unanswered = sub.unanswered.saturating_sub(1);
        Some(sub)
    }

    /// After a commit.
    pub(super) fn release_answers(&mut self, out: &mut dyn Outlet) {
        let committed = self.store.committed();
        while let Some(answer) = self.waiting.front()
            && answer.commit <= committed
            && let Some(answer) = self.waiting.pop_front()
        {
            self.answer_now(&answer, out);
        }
    }

    fn answer_now(&mut self, answer: &Answer, out: &mut dyn Outlet) {
        if let Some(reply) = &answer.reply {
            out.publish(reply, None, &answer.response);
        }
        let Some(About { index, id, resumed }) = answer.about else {
            return;
        };
        let Some(sub) = self.answered(index, id) else {
            return;
        };
        if !sub.is_open() {
            return;
        }
        let group = sub.group.clone();
        match resumed {
            true => self.redeliver_all(index, id, out),
            false => self.arm(index, id),
        }
        self.deliver_next(index, id, &group, out);
    }
}
