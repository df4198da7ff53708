/* SPDX-License-Identifier: Apache-2.0 */
/*
 * doorbell.pml - publish meets sleep, twice: frames and a sleeping receiver, room and a waiting
 * sender (native/port_tx.c, port_rx.c, port_wait.c). Property: spin's own, no invalid end state: a
 * sender that waits for room that was given, or a receiver that sleeps while frames wait, is a
 * deadlock.
 *
 * All words are read and written relaxed: the promise must not need more than its fences. Time-outs
 * are left out; with them a lost wake-up would cost time only, and nobody would notice it here.
 *
 * A doorbell is a system call: what the ringer did before is visible to who heard it (the socket's
 * lock in the kernel). It is modelled as release and acquire, and needed by the restart alone.
 *
 * CRASH 1: the sender's process may die anywhere once, and its successor goes on from what lies in
 * shared memory. CRASH 2: the receiver's.
 */
#define WORDS 4
#define HISTORY 16
#include "weak.pml"

#define S 0
#define R 1
#define HEAD 0 /* the sender's */
#define WANT 1
#define TAIL 2 /* the receiver's */
#define WAKE 3

#if CRASH
#define FRAMES 2
#else
#define FRAMES 3
#endif
#define ROOM 1 /* frames that the channel holds: it is full again and again */

bit bell[2];              /* rung and not yet heard, by who hears it */
byte bell_view[2 * WORDS]; /* what its ringers had seen */
bit crashed;

/* Between any two of its steps a process may be killed, once. */
#define MAY_DIE \
    if \
    :: !crashed -> crashed = 1; goto again \
    :: true \
    fi
#if CRASH == 1
#define S_MAY_DIE MAY_DIE
#else
#define S_MAY_DIE skip
#endif
#if CRASH == 2
#define R_MAY_DIE MAY_DIE
#else
#define R_MAY_DIE skip
#endif

inline ring(t, who)
{
    d_step {
        bell[who] = 1;
        j = 0;
        do
        :: j < WORDS ->
            if
            :: VIEW(t, j) > bell_view[(who) * WORDS + j] -> bell_view[(who) * WORDS + j] = VIEW(t, j)
            :: else
            fi;
            j++
        :: else -> break
        od;
        j = 0
    }
}

/* Sleep until the bell rings, and take the ring. */
inline hear(t)
{
    d_step {
        bell[t];
        bell[t] = 0;
        j = 0;
        do
        :: j < WORDS ->
            if
            :: bell_view[(t) * WORDS + j] > VIEW(t, j) -> VIEW(t, j) = bell_view[(t) * WORDS + j]
            :: else
            fi;
            j++
        :: else -> break
        od;
        j = 0
    }
}

/* mint_port_flush() */
inline flush()
{
    store(S, HEAD, head, false);
    S_MAY_DIE;
    if
    :: MUTANT(1) -> skip
    :: else -> full_fence(S)
    fi;
    load(S, WAKE, false, v);
    if
    :: (v & 1) && v != rung -> S_MAY_DIE; rung = v; ring(S, R)
    :: else
    fi;
    v = 0
}

/* mint_port_ask_room(): odd, and each odd value once */
inline ask_room()
{
    if
    :: OWN(S, WANT) & 1 -> store(S, WANT, OWN(S, WANT) + 2, false)
    :: else -> store(S, WANT, OWN(S, WANT) + 1, false)
    fi;
    if
    :: MUTANT(2) -> skip
    :: else -> full_fence(S)
    fi
}

proctype sender()
{
    byte i, j, v, head, rung, tail;

again:
    head = OWN(S, HEAD);
    rung = 0;
    tail = 0;
    if
    :: crashed && !MUTANT(7) -> ring(S, R) /* mint_port_add_peer(): its predecessor may not have */
    :: else
    fi;
    do
        :: OWN(S, HEAD) == FRAMES -> break
        :: else ->
            if
            :: head - tail == ROOM ->
                load(S, TAIL, false, tail);
                if
                :: head - tail == ROOM && !bell[S] ->
                    ask_room();
                    if
                    :: MUTANT(5) -> skip
                    :: else -> load(S, TAIL, false, tail) /* once more: the re-check */
                    fi;
                    if
                    :: head - tail == ROOM -> S_MAY_DIE; hear(S)
                    :: else
                    fi
                :: head - tail == ROOM && bell[S] -> hear(S)
                :: else
                fi
            :: else -> head++; S_MAY_DIE; flush()
            fi
        od
}

/* mint_port_recycle() */
inline recycle()
{
    store(R, TAIL, next, false);
    R_MAY_DIE;
    if
    :: MUTANT(3) -> skip
    :: else -> full_fence(R)
    fi;
    load(R, WANT, false, v);
    if
    :: (v & 1) && v != rung -> R_MAY_DIE; rung = v; ring(R, S)
    :: else
    fi;
    v = 0
}

/* sleep_until() */
inline sleep()
{
    store(R, WAKE, OWN(R, WAKE) + 1, false);
    if
    :: MUTANT(4) -> skip
    :: else -> full_fence(R)
    fi;
    if
    :: MUTANT(6) -> skip
    :: else -> load(R, HEAD, false, head)
    fi;
    if
    :: head == next -> R_MAY_DIE; hear(R)
    :: else
    fi;
    store(R, WAKE, OWN(R, WAKE) + 1, false)
}

proctype receiver()
{
    byte i, j, v, head, rung, next;

again:
    next = OWN(R, TAIL);
    head = next;
    rung = 0;
    if
    :: crashed && !MUTANT(7) ->
        store(R, WAKE, (OWN(R, WAKE) + 1) & 254, false); /* ctl_begin() */
        ring(R, S)
    :: else
    fi;
    do
        :: OWN(R, TAIL) == FRAMES -> break
        :: else ->
            load(R, HEAD, false, head);
            if
            :: head != next -> next = head; R_MAY_DIE; recycle()
            :: else -> sleep()
            fi
        od
}

init
{
    atomic {
        READ_MUTANT;
        run sender();
        run receiver()
    }
}
