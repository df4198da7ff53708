/* SPDX-License-Identifier: Apache-2.0 */
/*
 * weak.pml - C11's memory model, as far as this project's shared words need it, for spin.
 *
 * Spin itself interleaves: every store is seen by everybody at once, which no machine does. Here a
 * store only appends a message to its word's history. A load may return any message that is not
 * older than what its thread has seen of that word, so a thread may go on seeing an old value for
 * as long as nothing forces it to see a newer one. That covers what store buffers do (a store that
 * is delayed past the thread's own later loads) and also what weaker machines do (loads that are
 * satisfied early, stores to two words that others see in different orders).
 *
 *   view[t, l]   the oldest message of word l that thread t may still read
 *   release      a message carries its writer's view and clock
 *   acquire      the reader takes over the view and clock of the message that it read
 *   full fence   thread and a global view take over from each other: so of two threads that both
 *                fence, the one that comes second sees all that the first had seen or written
 *
 * This is the promise-free part of the model of Kang et al., "A Promising Semantics for
 * Relaxed-Memory Concurrency" (POPL 2017), without read-modify-write operations, simplified by the
 * fact that every word here has a single writer: its order of modification is the writer's.
 * Left out is what no load-store reordering can do without: a store that becomes visible before an
 * earlier load of the same thread. Where that could harm (a reader that gives memory back before it
 * has read it), the clocks tell: memory that is no atomic word is watched for data races, by the
 * happens-before order that acquire and release make, and only by that.
 *
 * Two threads, 0 and 1. The including file defines WORDS, the number of words, and HISTORY, the
 * most messages of a word.
 *
 * Mutants. A number that the environment gives (MUTANT) takes one thing out: MUTANT(7) is true when
 * the seventh is taken out. So one compiled model is run once as it is, and once for each mutant,
 * which must fail.
 */
byte mutant;
#define MUTANT(k) (mutant == (k))
#define READ_MUTANT \
    c_code { now.mutant = getenv("MUTANT") ? atoi(getenv("MUTANT")) : 0; }

#define AT(l, k) ((l) * HISTORY + (k))
#define VIEW(t, l) view[(t) * WORDS + (l)]

byte last[WORDS];                             /* newest message of each word */
byte value[WORDS * HISTORY];                  /* of each message */
byte carried[WORDS * HISTORY * WORDS];        /* view that a release message carries */
byte stamp[WORDS * HISTORY];                  /* its writer's clock; 0: it was no release */
byte view[2 * WORDS];
byte global[WORDS];                           /* of the full fences */
byte known[2];                                /* how much of the other's clock each thread knows */
byte clock[2] = 1;

inline raise_view(t, from)
{
    j = 0;
    do
    :: j < WORDS ->
        if
        :: carried[(from) * WORDS + j] > VIEW(t, j) -> VIEW(t, j) = carried[(from) * WORDS + j]
        :: else
        fi;
        j++
    :: else -> break
    od
}

/* All of these run in one step; i and j are the caller's scratch variables. */
inline load(t, l, acquire, to)
{
    atomic {
        i = VIEW(t, l);
        do
        :: i < last[l] -> i++
        :: break
        od;
        VIEW(t, l) = i;
        to = value[AT(l, i)];
        if
        :: (acquire) && stamp[AT(l, i)] ->
            raise_view(t, AT(l, i));
            if
            :: stamp[AT(l, i)] > known[t] -> known[t] = stamp[AT(l, i)]
            :: else
            fi
        :: else
        fi;
        i = 0;
        j = 0
    }
}

inline store(t, l, v, release)
{
    d_step {
        j = v; /* it may be reckoned from the word's last value */
        last[l]++;
        assert(last[l] < HISTORY);
        VIEW(t, l) = last[l];
        value[AT(l, last[l])] = j;
        if
        :: (release) ->
            stamp[AT(l, last[l])] = clock[t];
            clock[t]++;
            j = 0;
            do
            :: j < WORDS -> carried[AT(l, last[l]) * WORDS + j] = VIEW(t, j); j++
            :: else -> break
            od
        :: else
        fi;
        j = 0
    }
}

inline full_fence(t)
{
    d_step {
        j = 0;
        do
        :: j < WORDS ->
            if
            :: global[j] > VIEW(t, j) -> VIEW(t, j) = global[j]
            :: else -> global[j] = VIEW(t, j)
            fi;
            j++
        :: else -> break
        od;
        j = 0
    }
}

/* A word that a thread has written itself. */
#define OWN(t, l) value[AT(l, last[l])]
