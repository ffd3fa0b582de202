# Turns an HTML file into a C header: its bytes, and the SHA-256 of its one script and one style in base64, as a
# Content-Security-Policy wants them.   cmake -D IN=live_page.html -D OUT=live_page_bytes.h -P embed_page.cmake
cmake_minimum_required(VERSION 3.22)

# What stands between <tag> and </tag>.
function(inside page tag out)
  string(FIND "${page}" "<${tag}>" from)
  string(FIND "${page}" "</${tag}>" to)
  if(from LESS 0 OR to LESS from)
    message(FATAL_ERROR "${IN} has no <${tag}>...</${tag}>")
  endif()
  string(LENGTH "<${tag}>" n)
  math(EXPR from "${from} + ${n}")
  math(EXPR n "${to} - ${from}")
  string(SUBSTRING "${page}" ${from} ${n} text)
  set(${out} "${text}" PARENT_SCOPE)
endfunction()

# 64 hex digits as 43 characters of base64 and one '='.
function(base64_of_sha256 hex out)
  set(letters "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
  set(text "")
  foreach(i RANGE 0 60 6)
    string(SUBSTRING "${hex}00" ${i} 6 three_bytes)
    foreach(shift 18 12 6 0)
      math(EXPR index "(0x${three_bytes} >> ${shift}) & 63")
      string(SUBSTRING "${letters}" ${index} 1 letter)
      string(APPEND text "${letter}")
    endforeach()
  endforeach()
  string(SUBSTRING "${text}" 0 43 text)
  set(${out} "${text}=" PARENT_SCOPE)
endfunction()

file(READ ${IN} page)
foreach(tag script style)
  inside("${page}" ${tag} text)
  string(SHA256 hex "${text}")
  base64_of_sha256(${hex} ${tag}_hash)
endforeach()
file(READ ${IN} bytes HEX)
string(REGEX REPLACE "(................................)" "\\1\n    " bytes "${bytes}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
file(WRITE ${OUT} "/* The live page, from router/live_page.html. */
#pragma once

#define LIVE_PAGE_SCRIPT_SHA256 \"${script_hash}\"
#define LIVE_PAGE_STYLE_SHA256 \"${style_hash}\"

static const unsigned char live_page_bytes[] = {
    ${bytes}};
")
