# Turns a text file into a C string constant: cmake -DIN=file -DOUT=file.c -DNAME=symbol -P embed.cmake
# One string literal per line keeps each below the length that C11 compilers must accept, so the
# text is an array of lines.
file(STRINGS ${IN} LINES ENCODING UTF-8)
set(TEXT "/* Built from ${NAME}'s source text. */\nextern const char *const ${NAME}[];\nconst char *const ${NAME}[] = {\n")
foreach(LINE IN LISTS LINES)
    string(REPLACE "\\" "\\\\" LINE "${LINE}")
    string(REPLACE "\"" "\\\"" LINE "${LINE}")
    string(REPLACE "\t" "\\t" LINE "${LINE}")
    string(APPEND TEXT "    \"${LINE}\",\n")
endforeach()
string(APPEND TEXT "    0};\n")
file(WRITE ${OUT} "${TEXT}")
