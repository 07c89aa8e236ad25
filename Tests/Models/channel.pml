/* SPDX-License-Identifier: Apache-2.0 */

/* How fibers and threads meet at channels, for the model checker spin:

     Tests/Models/check channel  (spin -DSCENE=2 -DCAPACITY=0 -a channel.pml && cc -O1 -DSAFETY -DCOLLAPSE -o pan pan.c && ./pan)

   A few fibers, as if each had a thread of its own, send and receive, some with `select`, on one or two channels with room for CAPACITY messages (0 to 2); timers and
   cancellations end CANCELS of their waits, at any time; another thread closes the channels, at any time. SCENE says who there is: see `init`. Modelled, step by step, as in
     Sources/Fibers/Kernel/Parking/WaitPoint.swift    the lines behind their locks: `wait`, `claimFirst`, `claimAll`, `resume`, `leave`, `takeBack`
     Sources/Fibers/Kernel/Parking/Waiter.swift       the claim word: parked and unclaimed, or not; one compare-and-swap. Epochs are left out: with the locks held nobody has an old one
     Sources/Fibers/Channels/ChannelCore.swift    the quick ways, `look`, `isReady`, `close`
     Sources/Fibers/Channels/Select.swift         `insert`, `chooseReady`, `attempt`, `wait`, `takePlaces`, `noteEnd`
   How who was claimed comes back to his worker is in wake.pml; here he goes on at once. Memory is sequentially consistent. What only one may touch, since he has the lock or
   has claimed, he touches in one step as far as the next claim word; that it is only one is asserted. Each move of
   a message is asserted to go from a full slot to an empty one, so that messages can be lost or doubled only in the accounts of their owners, and those are checked.

   A channel has two locks: S, of the sending side, and R, of the receiving side.
     * The general way is all that looks at more than one side, and all that waits: it takes both, S first.
     * Where the queue has places there is a quick way before it. A sender takes S alone. If the channel is open, nobody waits to receive, and there is room, he puts his message
       into the queue, publishes that it is there, and is done. A receiver takes R alone. If nobody waits to send, and there is a message, he takes it out and publishes that its
       slot is free. Else each lets go of his lock and goes the general way. Who finds there that he only needs a place in the queue, or a message, lets go of the other side's lock first.
     * So the lines and the closed flag change only under both locks, and either is enough to look at them; `sent` and the end of the queue change only under S, `received` and
       the front only under R. What one side sees of the other may be old. Then there is more room, or there are more messages, than it thinks: at worst it goes the general way
       without need.
     * Nobody decides to wait but under both locks, when nobody is in a quick way. So nobody has to look at the other side after he has published something of his own, and
       it is enough to publish with release and to look with acquire.
   To fill a slot of the queue and to publish that are two steps here, and so are to empty one and to publish that. A channel without places has no quick way, and both locks
   are as good as one. The arms of a select go the general way.

   Checked, for every interleaving:
     * each message is received once, or handed back once, or left in the queue of a closed channel (asserts, and the balance at the end);
     * each wait is claimed once and resumed once, and one arm of a select takes effect, or, when a timer was faster or all channels are closed, none;
     * whenever both locks are free, no receiver waits while there is a message in the queue or with somebody else who waits to send, no sender while there is room, and
       nobody on a closed channel (`orderly`). This holds for those, too, who have been claimed elsewhere and have not left yet: whoever comes throws them out;
     * what one sender has sent is received in that order, and nothing is put into the queue of a closed channel;
     * a slot of the queue is filled when it is empty, and emptied when it is full;
     * lines are touched with both locks held; a place is in line only while its owner's frame is there; one that was served is not touched once its owner was resumed;
     * everything ends, without a lock that is held and without anybody in line: all else is an invalid end state;
     * with -DNP and `pan -l`: no select takes its park back again and again, for ever. That is what order is for: places are taken channel by channel, in the same order by all,
       and all those on one channel under one hold of its locks. So the select that finds another one in line takes its park back, and that other one does not on account of
       the first. In opposite order, or one after the other on one channel, each would find the other ready, and as long as they keep in step, each would take its park back
       before the other can claim it.

   Each MUTANT_… leaves out one step, or does it in the wrong place, and must be found.
*/

#ifndef CANCELS
#define CANCELS 1
#endif

/* Directions of an arm, and the two lines of a channel. */
#define SEND    0
#define RECEIVE 1
#define side(c, direction) (2 * (c) + (direction))

/* Outcomes. */
#define NOTHING   0
#define READY     1
#define CLOSED    2
#define CANCELLED 3

#define MOST   4 /* who waits */
#define NOBODY 255

/* Each has two places, for a select with two arms; without one it uses the first. */
#define place(who, arm) (2 * (who) + (arm))
#define owner(place) ((place) >> 1)

chan line[4] = [4] of { byte };
byte sending[2];        /* who holds S, the lock of a channel's sending side, counted from 1; 0 when it is free */
byte receiving[2];      /* R, that of the receiving side */
bit closed[2];
byte sent[2];           /* messages that have been put into the queue */
byte received[2];       /* those that have been taken out */
byte queue[4];          /* a ring of up to two slots for each channel: the message in each, or 0 */

bit waiting[MOST];      /* the claim word */
byte woken[MOST];       /* resumed, and with what outcome */
bit parked[MOST];
bit frame[MOST];        /* the frame with its places is there */
bit linked[8];
bit served[8];
byte slot[8];           /* the message in it, or 0 */
byte heard[MOST] = 3;   /* what the last message said that was received of a sender's: how many more he has to send */

byte scene, capacity;
byte flying = 0;        /* messages of which nobody has heard the end */
byte left = 0;          /* who has not finished */

/* A message says whose it is, and how many more he has to send. */
#define message(who, rest) (4 * (who) + (rest) + 1)

#define count(c) (sent[c] - received[c])
#define at(c, number) (2 * (c) + (number) % capacity)

#define isFree(c) (sending[c] == 0 && receiving[c] == 0)
#if defined(MUTANT_LINKS_UNLOCKED) || defined(MUTANT_RECEIVES_WITHOUT_R) || defined(MUTANT_ENTERS_WITH_ONE)
#define holds(c) true
#else
#define holds(c) (sending[c] == me + 1 && receiving[c] == me + 1)
#endif

#define resting(who) (!frame[who] || parked[who] && waiting[who])
#define quiet (resting(0) && resting(1) && resting(2) && resting(3))

/* Whether a place is in a line, and how many of one owner are. (What spin gives is where it stands.) */
#define has(c, direction, which) (line[side(c, direction)] ?? [eval(which)] > 0)
#define own(c, direction, who) (has(c, direction, place(who, 0)) + has(c, direction, place(who, 1)))

/* The invariants of a channel whenever its locks are free, and so nobody is in a quick way. Both lines have somebody only if all of them are the places of one select. */
inline orderly(c) {
  assert(!closed[c] || len(line[side(c, SEND)]) + len(line[side(c, RECEIVE)]) == 0);
  assert(count(c) >= 0 && count(c) <= capacity);
  assert(count(c) == 0 || len(line[side(c, RECEIVE)]) == 0);
  assert(count(c) == capacity || len(line[side(c, SEND)]) == 0);
  if
  :: len(line[side(c, SEND)]) > 0 && len(line[side(c, RECEIVE)]) > 0 ->
     line[side(c, SEND)] ? <other>;
     other = owner(other);
     assert(len(line[side(c, SEND)]) == own(c, SEND, other) && len(line[side(c, RECEIVE)]) == own(c, RECEIVE, other));
     other = 0
  :: else
  fi
}

inline lockSending(c) { atomic { sending[c] == 0 -> sending[c] = me + 1 } }
inline lockReceiving(c) { atomic { receiving[c] == 0 -> receiving[c] = me + 1 } }

inline lock(c) {
  if
  :: atomic { capacity == 0 && isFree(c) -> sending[c] = me + 1; receiving[c] = me + 1 }
#ifdef MUTANT_OPPOSITE_ORDER
  :: capacity > 0 && me >= MOST -> lockReceiving(c); lockSending(c)
  :: capacity > 0 && me < MOST -> lockSending(c); lockReceiving(c)
#else
  :: atomic { capacity > 0 && sending[c] == 0 -> sending[c] = me + 1 };
     lockReceiving(c)
#endif
  fi
}

/* Lets go of both locks, or of the one that is held. Of both in one step: as long as only R is free, others can do nothing that they could not do afterwards. */
inline unlock(c) {
  d_step {
    assert(sending[c] == me + 1 || receiving[c] == me + 1);
    sending[c] = (sending[c] == me + 1 -> 0 : sending[c]);
    receiving[c] = (receiving[c] == me + 1 -> 0 : receiving[c]);
    if
    :: isFree(c) -> orderly(c)
    :: else
    fi
  }
}

/* WaitPoint.enter */
inline enter(c, direction, which) {
  d_step {
    assert(holds(c));
    assert(!linked[which] && frame[me]);
    line[side(c, direction)] ! which;
    linked[which] = 1
  }
}

/* WaitPoint.claimFirst: `met` is the first whose wait nothing else has ended. */
inline claimFirst(c, direction) {
  met = NOBODY;
  do
  :: atomic {
       nempty(line[side(c, direction)]) ->
       assert(holds(c));
       line[side(c, direction)] ? other;
       assert(frame[owner(other)] && linked[other] && owner(other) != me);
       linked[other] = 0;
       if
#ifdef MUTANT_CLAIMS_BY_STORE
       :: waiting[owner(other)] -> met = other
#else
       :: waiting[owner(other)] -> waiting[owner(other)] = 0; met = other
#endif
       :: else
       fi;
       other = 0;
       if
       :: met != NOBODY -> break
       :: else
       fi
     }
  :: empty(line[side(c, direction)]) -> break
  od;
#ifdef MUTANT_CLAIMS_BY_STORE
  if
  :: met != NOBODY -> waiting[owner(met)] = 0
  :: else
  fi;
#endif
}

/* From here on the claimant alone may touch the place, until he resumes its owner. */
inline serve(which) {
  assert(frame[owner(which)] && !waiting[owner(which)] && woken[owner(which)] == NOTHING);
  assert(!served[place(owner(which), 0)] && !served[place(owner(which), 1)]);
  served[which] = 1
}

/* What was sent first by one sender is received first. */
inline hear(what) {
  assert((what - 1 & 3) < heard[what - 1 >> 2]);
  heard[what - 1 >> 2] = what - 1 & 3
}

inline move(from, to) {
  assert(slot[from] && !slot[to]);
  slot[to] = slot[from];
  slot[from] = 0;
  hear(slot[to])
}

/* The message of this number goes into the queue, or leaves it. Whoever does that has yet to publish it: under both locks in the same step. */
inline put(c, from, number) {
  assert(!closed[c] && slot[from] && !queue[at(c, number)]);
  queue[at(c, number)] = slot[from];
  slot[from] = 0
}

inline take(c, to, number) {
  assert(!slot[to] && queue[at(c, number)]);
  slot[to] = queue[at(c, number)];
  queue[at(c, number)] = 0;
  hear(slot[to])
}

inline resume(which, outcome) {
  d_step {
    assert(frame[owner(which)] && served[which] && !waiting[owner(which)] && woken[owner(which)] == NOTHING);
    woken[owner(which)] = outcome
  }
}

/* Serves `met`: lets go of the locks, moves the message from one slot to the other, and lets him go on. */
inline meet(c, from, to) {
#ifdef MUTANT_MOVES_LAST
  d_step { serve(met) };
  unlock(c);
  resume(met, READY);
  d_step { move(from, to) };
#else
  d_step { serve(met) };
  unlock(c);
  d_step { move(from, to) };
#ifdef MUTANT_FORGETS_TO_RESUME
  skip;
#else
  resume(met, READY);
#endif
#endif
  met = NOBODY
}

/* trySend and tryReceive, for the caller's place `which`: READY, CLOSED, or NOTHING with the locks held. */
inline attempt(c, direction, which, outcome) {
  lock(c);
#ifdef MUTANT_RECEIVES_WITHOUT_R
  if
  :: direction == RECEIVE && capacity > 0 -> receiving[c] = 0
  :: else
  fi;
#endif
  if
  :: direction == SEND && closed[c] -> unlock(c); outcome = CLOSED
  :: direction == SEND && !closed[c] ->
     claimFirst(c, RECEIVE);
     if
     :: met != NOBODY -> meet(c, which, met); outcome = READY
     :: atomic { met == NOBODY && count(c) < capacity -> receiving[c] = 0 };
        d_step { put(c, which, sent[c]) };
        sent[c]++;
        unlock(c);
        outcome = READY
     :: else -> outcome = NOTHING
     fi
  :: direction == RECEIVE && count(c) > 0 ->
#ifdef MUTANT_LEAVES_THE_NEXT_SENDER
     met = NOBODY;
#else
     claimFirst(c, SEND);
#endif
     if
     :: met != NOBODY ->
        d_step { serve(met); take(c, which, received[c]); received[c]++; put(c, met, sent[c]); sent[c]++ };
        unlock(c);
        resume(met, READY);
        met = NOBODY
     :: atomic { else -> sending[c] = 0 };
        d_step { take(c, which, received[c]) };
        received[c]++;
        unlock(c)
     fi;
     outcome = READY
  :: direction == RECEIVE && count(c) == 0 ->
     claimFirst(c, SEND);
     if
     :: met != NOBODY -> meet(c, met, which); outcome = READY
     :: met == NOBODY && closed[c] -> unlock(c); outcome = CLOSED
     :: else -> outcome = NOTHING
     fi
  fi
}

/* Whether the quick ways are open, each with the lock of its side held. */
#define nobody(c, direction) (len(line[side(c, direction)]) == 0)
#if defined(MUTANT_QUICKLY_PAST_RECEIVERS)
#define maySend(c) (!closed[c] && count(c) < capacity)
#elif defined(MUTANT_QUICKLY_PAST_THE_END)
#define maySend(c) (nobody(c, RECEIVE) && count(c) < capacity)
#elif defined(MUTANT_ONE_TOO_MANY)
#define maySend(c) (!closed[c] && nobody(c, RECEIVE) && count(c) <= capacity)
#else
#define maySend(c) (!closed[c] && nobody(c, RECEIVE) && count(c) < capacity)
#endif
#ifdef MUTANT_QUICKLY_PAST_SENDERS
#define mayReceive(c) (count(c) > 0)
#else
#define mayReceive(c) (nobody(c, SEND) && count(c) > 0)
#endif

/* A quick way that is open, for the caller's place `which`, or else the general way. To take the lock and to look are one step, and so are to publish and to let go: the other
   side does not care who has the lock. Whoever takes it in vain might as well not have come; that may happen to anybody, since what is seen of the other side may be old. */
inline quicklyOrNot(c, direction, which, outcome) {
  if
#ifdef MUTANT_QUICKLY_LOOKS_UNLOCKED
  :: direction == SEND && maySend(c) ->
     lockSending(c);
#else
  :: atomic { direction == SEND && sending[c] == 0 && maySend(c) -> sending[c] = me + 1 };
#endif
#ifdef MUTANT_PUBLISHES_SENT_FIRST
     sent[c]++;
     d_step { put(c, which, sent[c] - 1) };
     unlock(c);
#else
     d_step { put(c, which, sent[c]) };
     atomic { sent[c]++; unlock(c) };
#endif
     outcome = READY
  :: atomic { direction == RECEIVE && receiving[c] == 0 && mayReceive(c) -> receiving[c] = me + 1 };
#ifdef MUTANT_PUBLISHES_RECEIVED_FIRST
     received[c]++;
     d_step { take(c, which, received[c] - 1) };
     unlock(c);
#else
     d_step { take(c, which, received[c]) };
     atomic { received[c]++; unlock(c) };
#endif
     outcome = READY
  :: attempt(c, direction, which, outcome)
  fi
}

/* The wait can be claimed from here on. */
inline begin() {
  d_step {
    assert(!waiting[me] && woken[me] == NOTHING && frame[me]);
    waiting[me] = 1
  }
}

inline park(outcome) {
  atomic {
    parked[me] = 1;
    woken[me] != NOTHING;
    parked[me] = 0;
    outcome = woken[me];
    woken[me] = NOTHING
  }
}

/* WaitPoint.leave, unless the place was served, since who does that has taken it out. */
inline leave(c, direction, which) {
#ifndef MUTANT_STAYS_IN_LINE
  if
  :: served[which]
  :: else ->
     lock(c);
     d_step {
       if
       :: linked[which] ->
          assert(holds(c) && has(c, direction, which));
          line[side(c, direction)] ?? eval(which);
          linked[which] = 0
       :: else
       fi
     };
     unlock(c)
  fi
#else
  skip
#endif
}

/* The caller knows now what has become of an arm: with a message of his own that was not sent he does as he likes, and so he does with one that he has received. */
inline settle(which, direction, outcome) {
  assert(!linked[which] && !served[which] && (slot[which] > 0) == ((direction == SEND && outcome != READY) || (direction == RECEIVE && outcome == READY)));
  flying = flying - (slot[which] > 0);
  slot[which] = 0
}

/* A call of send or receive. */
proctype Plain(byte me; byte c; bit way; byte calls) {
  byte met = NOBODY, other, outcome;
  do
  :: calls == 0 -> break
  :: else ->
     d_step {
       calls--;
       frame[me] = 1;
       if
       :: way == SEND -> slot[place(me, 0)] = message(me, calls); flying++
       :: else
       fi
     };
     quicklyOrNot(c, way, place(me, 0), outcome);
     if
     :: outcome == NOTHING ->
#ifdef MUTANT_LINKS_LATER
        unlock(c);
        lock(c);
#endif
#ifdef MUTANT_LINKS_UNLOCKED
        unlock(c);
#endif
#ifdef MUTANT_ENTERS_WITH_ONE
        if
        :: way == SEND -> receiving[c] = 0
        :: else -> sending[c] = 0
        fi;
#endif
        begin();
        enter(c, way, place(me, 0));
#ifndef MUTANT_LINKS_UNLOCKED
        unlock(c);
#endif
        park(outcome);
        d_step { assert(served[place(me, 0)] == (outcome != CANCELLED)) };
        leave(c, way, place(me, 0));
        served[place(me, 0)] = 0
     :: else
     fi;
     d_step {
       settle(place(me, 0), way, outcome);
       outcome = NOTHING;
       frame[me] = 0
     }
  od;
  left--
}

/* Whether an arm could happen now. In the code this is as far as others are concerned, but when a select looks, it has no places on that channel (asserted below). */
#ifdef MUTANT_ONE_HOLD_PER_ARM
#define others(c, direction) (len(line[side(c, direction)]) > own(c, direction, me))
#else
#define others(c, direction) (len(line[side(c, direction)]) > 0)
#endif
#define isReady(c, direction) \
  (closed[c] || others(c, 1 - direction) || direction == SEND && count(c) < capacity || direction == RECEIVE && count(c) > 0)

/* Whether the other arm is on the same channel, so that it is its turn, too. */
#ifdef MUTANT_ONE_HOLD_PER_ARM
#define both false
#else
#define both (arm == 0 && channel[0] == channel[1])
#endif

proctype Select(byte me; byte c0; bit w0; byte c1; bit w1) {
  byte met = NOBODY, other, outcome, arm;
  byte channel[2];
  bit way[2], ready[2], out[2];
  d_step {
    /* Arms lie in the order of their channels. */
#ifndef MUTANT_IN_ORDER_OF_ARMS
    arm = c0 > c1;
#endif
    channel[arm] = c0; channel[1 - arm] = c1;
    way[arm] = w0; way[1 - arm] = w1;
    arm = 0;
    frame[me] = 1;
    slot[place(me, 0)] = (way[0] == SEND) * message(me, 0);
    slot[place(me, 1)] = (way[1] == SEND) * message(me, 0);
    flying = flying + (w0 == SEND) + (w1 == SEND)
  };
again:
  atomic { isFree(channel[0]) -> ready[0] = !out[0] && isReady(channel[0], way[0]) };
  atomic { isFree(channel[1]) -> ready[1] = !out[1] && isReady(channel[1], way[1]) };
  atomic {
    if
    :: ready[0] -> arm = 0
    :: ready[1] -> arm = 1
    :: else -> goto none
    fi;
    ready[0] = 0;
    ready[1] = 0
  };
  attempt(channel[arm], way[arm], place(me, arm), outcome);
  if
  :: outcome == NOTHING -> unlock(channel[arm]); goto again
  :: outcome == READY -> goto over
  :: outcome == CLOSED -> goto ended
  fi;
none:
#ifndef MUTANT_BEGINS_LATE
  begin();
#endif
  arm = 0;
  do
  :: arm < 2 && out[arm] -> arm++
  :: arm < 2 && !out[arm] ->
     lock(channel[arm]);
#ifdef MUTANT_MEETS_ITSELF
     if
     :: both && !isReady(channel[arm], way[arm]) -> enter(channel[arm], way[arm], place(me, arm))
     :: else
     fi;
#elif !defined(MUTANT_ONE_HOLD_PER_ARM)
     /* It has no place here yet. What has closed is closed for both arms. */
     d_step { assert(own(channel[arm], SEND, me) + own(channel[arm], RECEIVE, me) == 0 && !(both && out[1])) };
#endif
     if
#ifdef MUTANT_LOOKS_ONCE
     :: false ->
#else
     :: isReady(channel[arm], way[arm]) || both && isReady(channel[1], way[1]) ->
#endif
        unlock(channel[arm]);
        arm = 0;
#ifdef MUTANT_KEEPS_ITS_PARK
        leave(channel[1], way[1], place(me, 1));
        leave(channel[0], way[0], place(me, 0));
        goto again;
#endif
        if
#ifdef MUTANT_TAKES_BACK_BY_STORE
        :: waiting[me] -> waiting[me] = 0;
#else
        :: atomic { waiting[me] -> waiting[me] = 0 };
#endif
           leave(channel[1], way[1], place(me, 1));
           leave(channel[0], way[0], place(me, 0));
           goto again
        :: atomic { !waiting[me] -> break }   /* Somebody has served an arm that was registered before. */
        fi
     :: else ->
        enter(channel[arm], way[arm], place(me, arm));
        if
        :: both -> enter(channel[1], way[1], place(me, 1))
        :: else
        fi;
        unlock(channel[arm]);
#ifdef MUTANT_BEGINS_LATE
        if
        :: arm == 0 -> begin()
        :: else
        fi;
#endif
        arm = arm + 1 + both
     fi
  :: else -> break
  od;
  arm = 0;
#ifdef MUTANT_LEAVES_WITHOUT_PARKING
  if
  :: woken[me] == NOTHING && !waiting[me] -> outcome = READY
  :: else -> park(outcome)
  fi;
#else
  park(outcome);
#endif
  leave(channel[1], way[1], place(me, 1));
  leave(channel[0], way[0], place(me, 0));
  /* The arm that happened is the one that was served. */
  d_step {
    assert(served[place(me, 0)] + served[place(me, 1)] == (outcome != CANCELLED));
    arm = served[place(me, 1)];
    served[place(me, arm)] = 0
  };
  if
  :: outcome == CLOSED
  :: else -> goto over
  fi;
ended:
  /* The arm has met the end of its channel: that is what has happened, or it does not count any more. */
  atomic {
    if
    :: true -> goto over
    :: true -> out[arm] = 1; outcome = NOTHING
    fi;
    arm = 0;
    if
    :: out[0] && out[1] -> outcome = CLOSED
    :: else -> goto again
    fi
  };
over:
  atomic {
    settle(place(me, arm), way[arm], outcome);
    settle(place(me, 1 - arm), way[1 - arm], CANCELLED);
    frame[me] = 0
  };
  left--
}

/* A timer or a cancellation. */
active proctype Interrupter() {
  byte me, done;
end:
  do
  :: atomic {
       if
       :: waiting[0] && done < CANCELS -> me = 0
       :: waiting[1] && done < CANCELS -> me = 1
       :: waiting[2] && done < CANCELS -> me = 2
       :: waiting[3] && done < CANCELS -> me = 3
       fi;
       waiting[me] = 0;
       done++
     };
     d_step {
       assert(frame[me] && woken[me] == NOTHING);
       woken[me] = CANCELLED;
       me = 0
     }
  od
}

proctype Closer(byte me; byte channels) {
  byte met = NOBODY, other, c;
  chan claimed = [4] of { byte };
  do
  :: c < channels ->
     lock(c);
     if
     :: closed[c] -> unlock(c)
     :: else ->
        d_step { assert(holds(c)); closed[c] = 1 };
#ifdef MUTANT_CLOSE_UNLOCKS_FIRST
        unlock(c);
        lock(c);
#endif
        /* claimAll, of both lines. The list of those who are claimed uses the links of their places again. */
        do
        :: claimFirst(c, SEND);
           if
           :: met != NOBODY -> d_step { serve(met); linked[met] = 1; claimed ! met; met = NOBODY }
           :: else -> break
           fi
        od;
#ifndef MUTANT_CLOSE_FORGETS_RECEIVERS
        do
        :: claimFirst(c, RECEIVE);
           if
           :: met != NOBODY -> d_step { serve(met); linked[met] = 1; claimed ! met; met = NOBODY }
           :: else -> break
           fi
        od;
#endif
        unlock(c);
        do
        :: d_step { claimed ? met; assert(frame[owner(met)] && linked[met]); linked[met] = 0 };
           resume(met, CLOSED);
           met = NOBODY
        :: empty(claimed) -> break
        od
     fi;
     c++
  :: else -> break
  od;
  left--
}

init {
  atomic {
#ifdef SCENE
    scene = SCENE;
    capacity = CAPACITY;
#else
    /* One program searches them all. */
    c_code { now.scene = atoi(getenv("SCENE")); now.capacity = atoi(getenv("CAPACITY")); };
#endif
    if
    :: scene == 1 ->
       /* Two who send and two who receive on one channel. */
       left = 5;
       run Plain(0, 0, SEND, 1); run Plain(1, 0, SEND, 1); run Plain(2, 0, RECEIVE, 1); run Plain(3, 0, RECEIVE, 1);
       run Closer(4, 1)
    :: scene == 2 ->
       /* One receives from either of two channels on which others send. */
       left = 4;
       run Plain(0, 0, SEND, 1); run Plain(1, 1, SEND, 1); run Select(2, 0, RECEIVE, 1, RECEIVE);
       run Closer(4, 2)
    :: scene == 3 ->
       /* Two selects on two channels, one sends, one receives; their arms are written in opposite order. */
       left = 3;
       run Select(0, 0, SEND, 1, SEND); run Select(1, 1, RECEIVE, 0, RECEIVE);
       run Closer(4, 2)
    :: scene == 4 ->
       /* Two selects on two channels, each sends on one and receives on the other. */
       left = 3;
       run Select(0, 0, SEND, 1, RECEIVE); run Select(1, 0, RECEIVE, 1, SEND);
       run Closer(4, 2)
    :: scene == 5 ->
       /* Two selects which both send and receive on one channel. */
       left = 3;
       run Select(0, 0, SEND, 0, RECEIVE); run Select(1, 0, RECEIVE, 0, SEND);
       run Closer(4, 1)
    :: scene == 6 ->
       /* One that waits with two places in one line, with two that send. */
       left = 4;
       run Plain(0, 0, SEND, 1); run Select(1, 0, RECEIVE, 0, RECEIVE); run Plain(2, 0, SEND, 1);
       run Closer(4, 1)
    :: scene == 7 ->
       /* The same fibers wait again and again. */
       left = 4;
       run Plain(0, 0, SEND, 2); run Plain(1, 0, RECEIVE, 2); run Plain(2, 0, RECEIVE, 1);
       run Closer(4, 1)
    :: scene == 8 ->
       /* One who could only meet himself, until another comes, and two that close. */
       left = 4;
       run Select(0, 0, SEND, 0, RECEIVE); run Plain(1, 0, SEND, 1);
       run Closer(4, 1); run Closer(5, 1)
    :: scene == 9 ->
       /* As 5, with the arms in the same order. */
       left = 3;
       run Select(0, 0, SEND, 0, RECEIVE); run Select(1, 0, SEND, 0, RECEIVE);
       run Closer(4, 1)
    :: scene == 10 ->
       /* Two who send more than there is room for, and one who receives it all. */
       left = 4;
       run Plain(0, 0, SEND, 2); run Plain(1, 0, SEND, 1); run Plain(2, 0, RECEIVE, 3);
       run Closer(4, 1)
    :: scene == 11 ->
       /* One who sends and one who receives, again and again, and a select that may do either. */
       left = 4;
       run Plain(0, 0, SEND, 2); run Plain(1, 0, RECEIVE, 2); run Select(2, 0, RECEIVE, 0, SEND);
       run Closer(4, 1)
    fi
  }
  left == 0;
  assert(quiet && isFree(0) && isFree(1));
  assert(empty(line[0]) && empty(line[1]) && empty(line[2]) && empty(line[3]));
  assert(flying == count(0) + count(1))
}
