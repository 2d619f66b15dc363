// What a work item keeps in cache, and how it gets there.
//
// Memory is planes of M elements: time steps, or components of a state. A work item takes a strip of neighbouring
// positions from some rows of them; several short rows are done together, as segments. In cache they are a tile,
// tile[block][segment][plane], one lane each.
#pragma once
#include "cpu_lane.h"

namespace PMSN_NAMESPACE {

// One work item of a Layout (args.h).
struct Item {
    index_t position, width, row, end_row;

    Item(const Layout& layout, index_t index) {
        const index_t strips = (layout.P + layout.strip - 1) / layout.strip,
                      rows = (layout.M + layout.P - 1) / layout.P;
        const index_t group = index / strips;
        position = index % strips * layout.strip;
        width = layout.P - position < layout.strip ? layout.P - position : layout.strip;
        row = rows * group / layout.groups;
        end_row = rows * (group + 1) / layout.groups;
    }
};
static index_t item_count(const Layout& layout) { return (layout.P + layout.strip - 1) / layout.strip * layout.groups; }

// Rows done together: 64 steps of them, but one row where it has checkpoints.
static index_t batch_rows(const Layout& layout) {
    return layout.T > layout.interval || layout.T > 32 ? 1 : 64 / layout.T;
}

// Planes first..first+count of the rows of a batch; the tile's index of a plane counts from `first`.
struct Rows {
    index_t offset, valid, segments, segment_stride, count, stride;
};

struct Batch {
    index_t offset, valid, segments;  // first element in a plane, elements of each row, rows

    // The next batch of the item; no segments when there is none. Only the last row of a plane can be short.
    Batch(const Layout& layout, const Item& item) : offset(item.row * layout.P + item.position), valid(0), segments(0) {
        const index_t rest = layout.M - offset, most = batch_rows(layout);
        if (rest <= 0) return;
        valid = rest < item.width ? rest : item.width;
        while (segments < most && item.row + segments < item.end_row && rest - segments * layout.P >= valid) ++segments;
    }
    Rows planes(const Layout& layout, index_t first, index_t count) const {
        return {first * layout.M + offset, valid, segments, layout.P, count, layout.M};
    }
};

template <class L, class Memory>
PMSN_FN L load_part(const typename Memory::element* from, index_t valid) {
    typename Memory::element buffer[sizeof(L) / sizeof(real_of<L>)] = {};
    for (index_t i = 0; i < valid; ++i) buffer[i] = from[i];
    return Memory::load(buffer);
}
template <class L, class Memory>
PMSN_FN void store_part(typename Memory::element* to, L lane, index_t valid) {
    typename Memory::element buffer[sizeof(L) / sizeof(real_of<L>)];
    Memory::store(buffer, lane);
    for (index_t i = 0; i < valid; ++i) to[i] = buffer[i];
}

// `pitch` lanes of a tile belong to a block, `depth` of these to a segment. The rest of the last lane is read as zero.
template <class L, class Memory>
static void load_rows(L* tile, index_t pitch, index_t depth, const void* memory, const Rows& rows) {
    const index_t width = lane_width<real_of<L>>(), whole = rows.valid / width, rest = rows.valid % width;
    for (index_t s = 0; s < rows.segments; ++s, tile += depth) {
        const typename Memory::element* from =
            (const typename Memory::element*)memory + rows.offset + s * rows.segment_stride;
        for (index_t i = 0; i < rows.count; ++i, from += rows.stride) {
            for (index_t b = 0; b < whole; ++b) tile[b * pitch + i] = Memory::load(from + b * width);
            if (rest) tile[whole * pitch + i] = load_part<L, Memory>(from + whole * width, rest);
        }
    }
}
template <class L, class Memory>
static void store_rows(const L* tile, index_t pitch, index_t depth, void* memory, const Rows& rows) {
    const index_t width = lane_width<real_of<L>>(), whole = rows.valid / width, rest = rows.valid % width;
    for (index_t s = 0; s < rows.segments; ++s, tile += depth) {
        typename Memory::element* to = (typename Memory::element*)memory + rows.offset + s * rows.segment_stride;
        for (index_t i = 0; i < rows.count; ++i, to += rows.stride) {
            for (index_t b = 0; b < whole; ++b) Memory::store(to + b * width, tile[b * pitch + i]);
            if (rest) store_part<L, Memory>(to + whole * width, tile[whole * pitch + i], rest);
        }
    }
}

template <class L>
static void clear(L* lanes, index_t count) {
    for (index_t i = 0; i < count; ++i) lanes[i] = L{};
}

template <class L>
struct Tile {
    L* lanes;
    index_t blocks, pitch, depth;

    L* block(index_t b) const { return lanes + b * pitch; }

    // Memory of the arithmetic's own type; null reads as zero, and is not written.
    void load(index_t plane, const void* memory, const Rows& rows) const {
        if (memory) return load_rows<L, Plain<L>>(lanes + plane, pitch, depth, memory, rows);
        for (index_t b = 0; b < blocks; ++b)
            for (index_t s = 0; s < rows.segments; ++s) clear(block(b) + s * depth + plane, rows.count);
    }
    void store(index_t plane, void* memory, const Rows& rows) const {
        if (memory) store_rows<L, Plain<L>>(lanes + plane, pitch, depth, memory, rows);
    }
};

// Memory of any type: half precision comes with float arithmetic only.
static void load_as(index_t storage, const Tile<float_lane>& tile, const void* memory, const Rows& rows) {
    if (memory && storage == STORAGE_HALF)
        load_rows<float_lane, Half>(tile.lanes, tile.pitch, tile.depth, memory, rows);
    else if (memory && storage == STORAGE_BFLOAT16)
        load_rows<float_lane, Bfloat16>(tile.lanes, tile.pitch, tile.depth, memory, rows);
    else tile.load(0, memory, rows);
}
static void load_as(index_t, const Tile<double_lane>& tile, const void* memory, const Rows& rows) {
    tile.load(0, memory, rows);
}
static void store_as(index_t storage, const Tile<float_lane>& tile, void* memory, const Rows& rows) {
    if (storage == STORAGE_HALF) store_rows<float_lane, Half>(tile.lanes, tile.pitch, tile.depth, memory, rows);
    else if (storage == STORAGE_BFLOAT16)
        store_rows<float_lane, Bfloat16>(tile.lanes, tile.pitch, tile.depth, memory, rows);
    else tile.store(0, memory, rows);
}
static void store_as(index_t, const Tile<double_lane>& tile, void* memory, const Rows& rows) {
    tile.store(0, memory, rows);
}

// Asks for part `part` of `parts` of rows that will be needed soon: their lines lie too far apart for the hardware to
// see a pattern. (Inlined, for GCC takes a call of a function that only prefetches for one without effect.)
PMSN_FN void prefetch_rows(const void* memory, index_t storage, const Rows& rows, index_t part, index_t parts) {
    if (!memory) return;
    const index_t bytes = storage == STORAGE_DOUBLE  ? 8
                          : storage == STORAGE_FLOAT ? 4
                                                     : 2,
                  all = rows.segments * rows.count;
    for (index_t i = all * part / parts; i < all * (part + 1) / parts; ++i) {
        const index_t element = rows.offset + i / rows.count * rows.segment_stride + i % rows.count * rows.stride;
        const char* row = (const char*)memory + element * bytes;
        for (index_t byte = 0; byte < rows.valid * bytes; byte += 64) __builtin_prefetch(row + byte, 0, 2);
    }
}

// Neighbouring positions of an item that share a channel: q counts the channels over all positions of a row.
struct ChannelRun {
    index_t q, begin, end;

    ChannelRun(const Layout& layout, const Item& item)
        : q(item.position / layout.S),
          begin(0),
          end((q + 1) * layout.S - item.position) {
        if (end > item.width) end = item.width;
    }
    void advance(const Layout& layout, const Item& item) {
        ++q;
        begin = end;
        end = end + layout.S < item.width ? end + layout.S : item.width;
    }
};

// Parameters [C, count] of the strip's positions as planes of a tile of one segment.
template <class L>
static void gather_parameters(const Tile<L>& tile, index_t plane, const Layout& layout, const Item& item,
                              const void* parameters, index_t count) {
    const real_of<L>* values = (const real_of<L>*)parameters;
    const index_t width = lane_width<real_of<L>>();
    for (index_t b = 0; b < tile.blocks; ++b) clear(tile.block(b) + plane, count);
    for (ChannelRun run(layout, item); run.begin < item.width; run.advance(layout, item)) {
        const real_of<L>* row = values + run.q % layout.C * count;
        for (index_t p = run.begin; p < run.end;) {
            L* lanes = tile.block(p / width) + plane;
            if (p % width == 0 && p + width <= run.end) {
                for (index_t j = 0; j < count; ++j) lanes[j] = splat<L>(row[j]);
                p += width;
            } else {
                for (index_t j = 0; j < count; ++j) lanes[j][p % width] = row[j];
                ++p;
            }
        }
    }
}

// An item's sums per channel: slot q - q0 holds channel q % C, where q0 is the strip's first position / S.
static index_t channel_slots(const Layout& layout) { return (layout.strip - 1) / layout.S + 2; }

template <class L>
static void sum_by_channel(real_of<L>* partial, const Tile<L>& sums, const Layout& layout, const Item& item) {
    const index_t width = lane_width<real_of<L>>(), count = sums.depth;
    for (ChannelRun run(layout, item); run.begin < item.width; run.advance(layout, item), partial += count)
        for (index_t j = 0; j < count; ++j) {
            L whole = L{};
            real_of<L> sum = 0;
            for (index_t p = run.begin; p < run.end;) {
                const L lane = sums.block(p / width)[j];
                if (p % width == 0 && p + width <= run.end) {
                    whole += lane;
                    p += width;
                } else {
                    sum += lane[p % width];
                    ++p;
                }
            }
            for (index_t i = 0; i < width; ++i) sum += whole[i];
            partial[j] = sum;
        }
}

// Totals [C, count] of all items' slots, added in the order of the items.
template <class R>
static void reduce_channels(const Layout& layout, const R* partials, index_t count, double* totals) {
    const index_t slots = channel_slots(layout);
    for (index_t i = 0; i < layout.C * count; ++i) totals[i] = 0;
    for (index_t index = 0; index < item_count(layout); ++index) {
        const Item item(layout, index);
        const index_t first = item.position / layout.S, last = (item.position + item.width - 1) / layout.S;
        const R* slot = partials + index * slots * count;
        for (index_t q = first; q <= last; ++q, slot += count)
            for (index_t j = 0; j < count; ++j) totals[q % layout.C * count + j] += slot[j];
    }
}

// Cuts the thread's scratch memory into tiles.
template <class L>
struct Scratch {
    L* next;
    index_t blocks;

    Tile<L> tile(index_t segments, index_t depth) {
        const Tile<L> tile = {next, blocks, segments * depth, depth};
        next += blocks * segments * depth;
        return tile;
    }
    L* lanes(index_t count) {
        next += count;
        return next - count;
    }
};

template <class R>
static index_t block_count(const Layout& layout) {
    return (layout.strip + lane_width<R>() - 1) / lane_width<R>();
}

}  // namespace PMSN_NAMESPACE
