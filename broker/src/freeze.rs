//! The frozen state: who may ask what while it holds, and when it ends by itself.

use std::rc::Rc;

use proto::{Failed, fsfreeze};

use crate::Broker;
use crate::ask::Ask;
use crate::dispatch::{Work, simple};

/// Freezes, thaws, trims, or tells the state.
pub(crate) async fn work(broker: &Rc<Broker>, ask: &Ask, request: fsfreeze::Request) -> Result<Work, Failed> {
    simple(broker, ask, request.into()).await
}
