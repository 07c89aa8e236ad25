/* The protocol by which threads wake a fiber on its worker, for the model checker spin:

     Tests/Models/check          (spin -a wake.pml && cc -O2 -o pan pan.c && ./pan)

   One worker with one fiber, which waits again and again; two threads that signal it; another that takes a signal and gives it back; and deadlines and cancellations
   on the worker, which may come at any time. Modelled, step by step, as in
     Sources/Fibers/Kernel/Parking/SharedWaiter.swift    the claim: one compare-and-swap takes the fiber out of the waiter's word
     Sources/Fibers/Sync/FiberEvent.swift                the word: nothing, signalled, or the fiber
     Sources/Fibers/Kernel/Scheduling/Inbox.swift        push, the flag `sleeping`, and the eventfd

   Checked, for every interleaving:
     * each park is claimed once (asserts), so nobody makes a fiber ready twice;
     * no signal is lost: after the last one the fiber goes on once more, and sees what was done before it (else the end state is invalid);
     * no wake-up is lost: the worker does not sleep while something is in its inbox (the same).
*/

#define SIGNALS 2 /* of each thread */
#define TOTAL 4
#define INTERRUPTIONS 2

#define IDLE      0
#define SIGNALLED 1
#define FIBER     2

byte word = IDLE;         /* FiberEvent: what the waiter's word holds */
bool inbox = false;       /* the fiber stands in the worker's inbox */
bool sleeping = false;    /* the worker has announced that it will block */
bool poked = false;       /* the eventfd is readable */

bool parked = false;      /* the fiber waits, and its epoch says so: worker only */
bool ready = false;       /* the fiber stands in the ready queue: worker only */
byte claims = 0;          /* of the present park */
byte written = 0;         /* what the threads tell the fiber: each writes, then signals */
byte seen = 0;            /* how much of that the fiber has seen */

/* The claim on the fiber's own worker: by a timer or a cancellation. */
inline claimHere(won) {
  atomic {
    if
    :: parked && word == FIBER -> word = IDLE; won = true
    :: else -> won = false
    fi
  }
}

inline push() {
  /* The caller has claimed: it alone may touch the fiber. */
  assert(!inbox && !ready);
  inbox = true;
  if
  :: sleeping ->
     atomic { if :: sleeping -> sleeping = false; poked = true :: else fi }
  :: else
  fi
}

/* FiberEvent.signal, on another thread or worker: it guesses that there is nothing, and goes on with what it finds. */
inline signal(state, done) {
  state = IDLE;
  done = false;
  do
  :: !done ->
     atomic {
       if
       :: word == state ->
          if
          :: state == IDLE -> word = SIGNALLED
          :: state == SIGNALLED -> skip
          :: state == FIBER -> word = IDLE; claims++; assert(claims == 1)
          fi;
          done = true
       :: else -> state = word
       fi
     }
  :: done -> break
  od;
  if :: state == FIBER -> push() :: else fi
}

proctype Signaller() {
  byte state, sent = 0;
  bool done;
  do
  :: sent < SIGNALS ->
     sent++;
     written++;
     signal(state, done)
  :: else -> break
  od
}

/* FiberEvent.take on another thread, which passes on what it has taken. */
proctype Taker() {
  byte state;
  bool done;
  if
  :: atomic { word == SIGNALLED -> word = IDLE };
     signal(state, done)
  :: true
  fi
}

/* The worker's root and its one fiber. */
proctype Worker() {
  bool won;
  byte interruptions = 0;   /* waits that a deadline or a cancellation has ended */
  do
  :: seen == TOTAL -> break
  :: else ->
     /* FiberEvent.wait: take, or put the fiber into the word and park. To watch the word before that changes nothing. */
again:
     if
     :: atomic { word == SIGNALLED -> word = IDLE }
     :: word != SIGNALLED ->
        claims = 0;
        parked = true;
        if
        :: atomic { word == IDLE -> word = FIBER };
           /* Parked: the worker looks at its inbox, at its timers, and sleeps, in any order. */
           do
           :: ready -> break
           :: !ready && inbox -> inbox = false; parked = false; ready = true
           :: !ready && interruptions < INTERRUPTIONS ->
              claimHere(won);
              if
              :: won -> claims++; assert(claims == 1); parked = false; ready = true; interruptions++
              :: else
              fi
           :: !ready ->
              sleeping = true;
              if
              :: inbox -> sleeping = false
              :: !inbox -> poked; poked = false; sleeping = false       /* epoll_wait */
              fi
           od;
           ready = false
        :: word != IDLE ->
           /* A signal has come in between. Whoever takes it, it may be gone again by now. */
           parked = false;
           goto again
        fi
     fi;
     seen = written
  od
}

init {
  atomic { run Worker(); run Signaller(); run Signaller(); run Taker() }
  (_nr_pr == 1);
  assert(seen == TOTAL && word != FIBER && !inbox)
}
