//! [`AdmissionLayer`]: an adaptive limit and its queue, as a tower layer.

use std::{sync::Arc, time::Duration};

use tower::Layer;

use super::{
    Ask, Limiter,
    service::{Admission, AskFor, HoldBody, HoldResponse},
    state,
};
use crate::{
    clock,
    config::Discipline,
    control::{self, Readings},
};

/// Puts an adaptive concurrency limit and a short, bounded queue in front of a service.
///
/// Clones, and the services made by them, share one limit. A permit is held until the inner service
/// has answered; for HTTP use [`AdmissionLayer::hold_body`], which holds it until the response's body
/// has been produced. `poll_ready` reserves nothing.
///
/// ```
/// use tidegate::admission::AdmissionLayer;
/// use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let limit = AdmissionLayer::builder().max_wait(std::time::Duration::from_millis(200)).build();
/// let mut service = ServiceBuilder::new()
///     .layer(limit)
///     .service(service_fn(|n: u32| async move { Ok::<_, std::convert::Infallible>(n + 1) }));
/// assert_eq!(service.ready().await.unwrap().call(41).await.unwrap(), 42);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct AdmissionLayer<A = Alike, H = UntilResponse> {
    limiter: Arc<Limiter>,
    ask: A,
    hold: H,
}

/// Asks for every request alike.
#[derive(Clone, Copy, Debug)]
pub struct Alike;

/// Holds the permit until the inner service has answered.
#[derive(Clone, Copy, Debug)]
pub struct UntilResponse;

/// Holds the permit until the response's body has ended.
#[derive(Clone, Copy, Debug)]
pub struct UntilBody;

/// Hands the permit to the inner service, as [`super::Admitted`].
#[derive(Clone, Copy, Debug)]
pub struct HandOver;

impl AdmissionLayer<Alike, UntilResponse> {
    /// A layer with limits of its own.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A layer in front of a limiter that exists already.
    pub fn new(limiter: Arc<Limiter>) -> Self {
        Self {
            limiter,
            ask: Alike,
            hold: UntilResponse,
        }
    }
}

impl<A, H> AdmissionLayer<A, H> {
    /// What a request asks for: its class, deadline, route. Default: all alike, no deadline.
    pub fn ask<B>(self, ask: B) -> AdmissionLayer<B, H> {
        AdmissionLayer {
            limiter: self.limiter,
            ask,
            hold: self.hold,
        }
    }

    /// Holds the permit until the response's body has ended: for services that answer
    /// `http::Response`.
    pub fn hold_body(self) -> AdmissionLayer<A, UntilBody> {
        AdmissionLayer {
            limiter: self.limiter,
            ask: self.ask,
            hold: UntilBody,
        }
    }

    /// Hands the permit over: the inner service takes [`super::Admitted`] and completes the permit
    /// itself.
    pub fn hand_over(self) -> AdmissionLayer<A, HandOver> {
        AdmissionLayer {
            limiter: self.limiter,
            ask: self.ask,
            hold: HandOver,
        }
    }

    /// The limit, the queue and the law behind this layer.
    pub fn limiter(&self) -> &Arc<Limiter> {
        &self.limiter
    }
}

impl<S, A: Clone> Layer<S> for AdmissionLayer<A, UntilResponse> {
    type Service = Admission<HoldResponse<S>, A>;

    fn layer(&self, inner: S) -> Self::Service {
        Admission::new(
            HoldResponse::new(inner),
            self.limiter.clone(),
            self.ask.clone(),
        )
    }
}

impl<S, A: Clone> Layer<S> for AdmissionLayer<A, UntilBody> {
    type Service = Admission<HoldBody<S>, A>;

    fn layer(&self, inner: S) -> Self::Service {
        Admission::new(HoldBody::new(inner), self.limiter.clone(), self.ask.clone())
    }
}

impl<S, A: Clone> Layer<S> for AdmissionLayer<A, HandOver> {
    type Service = Admission<S, A>;

    fn layer(&self, inner: S) -> Self::Service {
        Admission::new(inner, self.limiter.clone(), self.ask.clone())
    }
}

impl<R> AskFor<R> for Alike {
    fn ask(&self, _request: &R) -> Ask {
        Ask::default()
    }
}

/// Configures an [`AdmissionLayer`]. Every setting has a default that needs no tuning.
#[derive(Clone, Debug)]
pub struct Builder {
    control: control::Settings,
    queue: state::Settings,
    slots: Option<u32>,
}

impl Default for Builder {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Self {
            control: control::Settings {
                initial: 2 * cores,
                ..control::Settings::default()
            },
            queue: state::Settings::default(),
            slots: None,
        }
    }
}

impl Builder {
    /// Where the limit starts, in requests. Default: twice the cores.
    pub fn initial(mut self, limit: u32) -> Self {
        self.control.initial = limit.max(1);
        self
    }

    /// The limit's bounds, in requests. Default: 1 to 1000.
    pub fn bounds(mut self, min: u32, max: u32) -> Self {
        self.control.min = min.max(1);
        self.control.max = max.max(self.control.min);
        self
    }

    /// A limit that does not move.
    pub fn fixed(mut self, limit: u32) -> Self {
        self.control.algorithm = control::Algorithm::Fixed;
        self.control.initial = limit.max(1);
        self.control.max = self.control.max.max(limit);
        self
    }

    /// How many requests the service can work on at once, if that is known: the limit goes no
    /// higher than that and a small margin. Default: unknown.
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = Some(slots.max(1));
        self
    }

    /// The longest anyone waits in the queue. Default: 500 ms.
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.queue.max_wait = max_wait;
        self
    }

    /// The most that may wait. Default: 10 x limit, at most 1024.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.queue.capacity = capacity.max(1);
        self
    }

    /// Who goes next. Default: adaptive LIFO.
    pub fn discipline(mut self, discipline: Discipline) -> Self {
        self.queue.discipline = discipline;
        self
    }

    /// Queues and refuses nobody; permits say who would have been refused. Default: off.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.queue.dry_run = dry_run;
        self
    }

    /// The layer.
    pub fn build(self) -> AdmissionLayer<Alike, UntilResponse> {
        let now = clock::now();
        let limiter = Limiter::new(self.queue, None, now);
        let readings = Readings {
            slots: self.slots,
            ..Readings::default()
        };
        limiter.add_lane(0, "service".to_owned(), self.control, readings, now);
        AdmissionLayer::new(Arc::new(limiter))
    }
}
