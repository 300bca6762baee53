/** Fair turns of runs that share one worker: each makes one network call, then the next in line goes on. */

export class Turns {
  constructor() {
    this.taken = false;
    this.waiting = [];
  }

  /** Number of runs that wait for their turn. */
  get length() {
    return this.waiting.length;
  }

  /** Wait for the turn. */
  async enter() {
    if (!this.taken) {
      this.taken = true;
      return;
    }
    await new Promise((resolve) => this.waiting.push(resolve));
  }

  /** Give the turn to the run that has waited longest. */
  leave() {
    const next = this.waiting.shift();
    if (next) next();
    else this.taken = false;
  }
}

const channel = new MessageChannel();
const resumed = [];
channel.port1.onmessage = () => resumed.shift()();

/** Let the events that have arrived be handled: a network call blocks the worker, so that messages wait. */
export function breathe() {
  return new Promise((resolve) => {
    resumed.push(resolve);
    channel.port2.postMessage(null);
  });
}

/** Seconds of a run's own turns. */
export class Watch {
  constructor() {
    this.total = 0;
    this.began = null;
  }

  start() {
    this.began = performance.now();
  }

  stop() {
    if (this.began !== null) this.total += (performance.now() - this.began) / 1000;
    this.began = null;
  }
}
