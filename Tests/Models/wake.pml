/* SPDX-License-Identifier: Apache-2.0 */

/* The protocol by which threads wake a fiber on its worker, for the model checker spin:

     Tests/Models/check wake     (spin -DSCENE=1 -a wake.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan)

   One worker with one fiber, which waits again and again; two threads that signal it; another that takes a signal and gives it back; and deadlines and cancellations
   on the worker, which may come at any time. Modelled, step by step, as in
     Sources/Fibers/Kernel/Parking/Waiter.swift       the claim word, and the claim: one compare-and-swap from the epoch to the epoch + 1
     Sources/Fibers/Kernel/Parking/WaitCell.swift     the wait queue of one waiter: empty, a value of the owner's, the fiber, or busy
     Sources/Fibers/Sync/FiberEvent.swift         the owner's value: a signal that no wait has taken
     Sources/Fibers/Kernel/Scheduling/Inbox.swift     push, the flag `sleeping`, and the eventfd
   Memory is sequentially consistent.

   SCENE 1   the fiber waits for a FiberEvent.
   SCENE 2   the fiber waits in a new cell each time, and leaves it for another thread to find (BlockingPool, RemoteJoin, Resolver). A thread may come with the cell of a wait that is over.
   SCENE 3   a plain thread waits as the fiber does in scene 1: its claim word lies in its frame, it sleeps on a futex beside that, and claims itself when its time is over. In the
             library threads wait at wait points only, where a lock does what `busy` does here: see channel.pml.

   Checked, for every interleaving:
     * each wait is claimed once (asserts), so nobody makes a fiber ready twice;
     * a claim word is touched only while its owner is in the waiting call: `frame` (asserts);
     * no signal is lost: after the last one a wait ends by a signal, and sees what was done before it, however many waits were interrupted (else the end state is invalid);
     * no wake-up is lost: the worker does not sleep while something is in its inbox, nor a fiber on a cell that is not busy any more (the same).

   Each MUTANT_… leaves out one step, or does it in the wrong place, and must be found.
*/

#ifndef SCENE
#define SCENE 1
#endif

#define TOTAL 3           /* signals: two of one thread, one of the other */
#define INTERRUPTIONS 2

/* What a cell's word holds. Beside BUSY there may be SIGNALLED and SLEEPERS. */
#define EMPTY     0
#define SIGNALLED 1
#define BUSY      4
#define SLEEPERS  8
#define FIBER     16

#define isBusy(state) (state < FIBER && (state & BUSY))

#if SCENE == 2
#define CELLS 9           /* one for each wait */
#else
#define CELLS 1
#endif

byte word[CELLS];
byte place = 0;           /* the cell that the fiber uses */
bool offered = false;     /* scene 2: threads find that cell */
bool over = false;        /* scene 2: the fiber has ended */

byte claimWord = 0;       /* the epoch: odd while the wait is unclaimed */
bool frame = false;       /* the owner of the claim word is in its waiting call, so its record is there */

bool inbox = false;       /* the fiber stands in the worker's inbox; scene 3: the futex of the thread was woken */
bool sleeping = false;    /* the worker has announced that it will block */
bool poked = false;       /* the eventfd is readable */
bool dozing = false;      /* the worker sleeps on the futex of a cell */

bool ready = false;       /* the fiber stands in the ready queue: worker only */
byte claims = 0;          /* of the present wait */
byte written = 0;         /* what the threads tell the fiber: each writes, then signals */
byte seen = 0;            /* how much of that the fiber has seen */

/* Waiter.claimShared: the same for a signaller, a timer, and a cancellation. */
inline claim(epoch, won) {
#ifdef MUTANT_CLAIMS_BY_STORE
  d_step { assert(frame); won = (epoch & 1) && claimWord == epoch };
  if
  :: won -> claimWord = epoch + 1; claims++; assert(claims == 1)
  :: else
  fi
#else
  atomic {
    assert(frame);
    if
    :: (epoch & 1) && claimWord == epoch -> claimWord = epoch + 1; claims++; assert(claims == 1); won = true
    :: else -> won = false
    fi
  }
#endif
}

/* Waiter.resume, after a claim: the caller alone may touch the fiber. */
inline push() {
  assert(!inbox && !ready && frame);
  inbox = true;
#if SCENE != 3
  if
  :: sleeping ->
     atomic { if :: sleeping -> sleeping = false; poked = true :: else fi }
  :: else
  fi
#endif
}

/* WaitCell.resume: the caller has made the cell busy. `kept` is what the cell shall hold when something else has ended the wait. */
inline resume(cell, kept) {
  d_step { assert(frame); epoch = claimWord };
  claim(epoch, won);
#ifdef MUTANT_LOSES_THE_SIGNAL
  atomic { state = word[cell]; word[cell] = (word[cell] & SIGNALLED) };
#else
  atomic { state = word[cell]; word[cell] = (word[cell] & SIGNALLED) | (won -> EMPTY : kept) };
#endif
#ifndef MUTANT_FORGETS_THE_SLEEPERS
  if :: (state & SLEEPERS) -> dozing = false :: else fi;
#endif
  if :: won -> push() :: else fi;
  d_step { epoch = 0; state = 0 }
}

/* FiberEvent.signal, on another thread or worker: it guesses that there is nothing, and goes on with what it finds. */
inline signal() {
  do
  :: atomic {
       if
       :: word[0] == state ->
          if
          :: state == FIBER -> word[0] = BUSY
          :: else -> word[0] = state | SIGNALLED
          fi;
          break
       :: else -> state = word[0]
       fi
     }
  od;
  if :: state == FIBER -> resume(0, SIGNALLED) :: else fi;
  d_step { state = 0; won = false }
}

/* WaitCell.unparkFromAnyThread, on the cell that a thread has found. */
inline unpark(cell) {
  if
  :: atomic { word[cell] == FIBER -> word[cell] = BUSY };
     resume(cell, EMPTY)
  :: word[cell] != FIBER -> won = false
  fi;
  mine = 0
}

#if SCENE == 2
/* Finds the cell of the wait, and unparks what is there. If something else has ended that wait, it finds the cell of the next one. */
proctype Signaller(byte signals) {
  byte state, epoch, mine;
  bool won;
  do
  :: signals > 0 ->
     d_step { signals--; written++; won = false };
     do
     :: won || over -> break
     :: atomic { !won && offered -> mine = place; offered = false };
        unpark(mine)
     od
  :: else -> break
  od
}

/* Comes with a cell that it has had for long. */
proctype Late() {
  byte state, epoch, mine;
  bool won = false;
  mine = place;
  unpark(mine)
}
#else
proctype Signaller(byte signals) {
  byte state, epoch;
  bool won;
  do
  :: signals > 0 ->
     d_step { signals--; written++ };
     signal()
  :: else -> break
  od
}

/* FiberEvent.take on another thread, which passes on what it has taken. */
proctype Taker() {
  byte state, epoch;
  bool won;
  if
  :: atomic { word[0] < FIBER && (word[0] & SIGNALLED) -> word[0] = word[0] & ~SIGNALLED };
     signal()
  :: true
  fi
}
#endif

/* The fiber parks, and its worker's root looks at the inbox, at timers, and sleeps, in any order. A thread has only the futex and the time. */
inline park(interrupted) {
  interrupted = false;
#if SCENE == 3
  do
  :: inbox -> inbox = false; break
  :: !inbox && interruptions < INTERRUPTIONS ->
     interruptions++;
     claim(epoch, won);
     if
     :: won -> interrupted = true; break
     :: else -> inbox; inbox = false; break
     fi
  od
#else
  do
  :: ready -> break
  :: !ready && inbox -> inbox = false; ready = true
  :: !ready && !interrupted && interruptions < INTERRUPTIONS ->
     interruptions++;
     claim(epoch, won);
     if
     :: won -> ready = true; interrupted = true
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
#endif
}

/* WaitCell.leave: takes the fiber out, or waits until nobody looks at its claim word any more. */
inline leave(cell) {
#ifdef MUTANT_STAYS_IN_THE_CELL
  skip
#else
  atomic {
    state = word[cell];
    if :: state == FIBER -> word[cell] = EMPTY :: else fi
  };
#ifndef MUTANT_LEAVES_WHILE_BUSY
  do
  :: atomic { !isBusy(word[cell]) -> break }
  :: atomic { isBusy(word[cell]) -> state = word[cell] };
     /* Whoever frees the cell sees the sleeper; or the word has changed, and the sleeper sees that. */
     atomic { if :: word[cell] == state -> word[cell] = state | SLEEPERS :: else fi };
     atomic { if :: word[cell] == (state | SLEEPERS) -> dozing = true :: else fi };
     !dozing
  od
#endif
#endif
}

/* The wait is claimed only after this: the call has not returned. */
inline begin() {
  d_step {
  claims = 0;
  frame = true;
  /* A few epochs are enough: nobody who is slow has an old one. */
  claimWord = (claimWord + 1 | 1) & 7;
  epoch = claimWord
  }
}

proctype Worker() {
  byte state, epoch, interruptions = 0;   /* waits that a deadline or a cancellation has ended, or tried to */
  bool won, interrupted;
  do
  :: seen == TOTAL -> break
  :: else ->
#if SCENE == 2
     begin();
     word[place] = FIBER;
     offered = true;
     park(interrupted);
     if
     :: interrupted -> leave(place)
     :: else
     fi;
     atomic { offered = false; frame = false; place++; }
#else
     /* FiberEvent.wait: take, or enter the cell and park. To watch the word before that changes nothing. */
again:
     if
     :: atomic { word[0] < FIBER && (word[0] & SIGNALLED) -> word[0] = word[0] & ~SIGNALLED }
     :: !(word[0] & SIGNALLED) ->
        begin();
        if
        :: atomic { word[0] == EMPTY -> word[0] = FIBER };
           park(interrupted);
           if
           :: interrupted -> leave(0)
           :: else
           fi;
           frame = false
        :: word[0] != EMPTY ->
           /* A signal has come in between, which another taker may have had. */
           claimWord = claimWord + 1;
           frame = false;
           goto again
        fi
     fi;
#endif
     /* A wait that was interrupted says so, and its caller does not look. */
     d_step { seen = (interrupted -> seen : written); state = 0; epoch = 0; won = false; interrupted = false }
  od;
  over = true
}

init {
#if SCENE == 2
  atomic { run Worker(); run Signaller(2); run Signaller(1); run Late() }
#else
  atomic { run Worker(); run Signaller(2); run Signaller(1); run Taker() }
#endif
  (_nr_pr == 1);
  assert(seen == TOTAL && !inbox)
}
